//! stub
use super::*;
/// x
#[derive(Clone, Debug)]
pub struct Request {
    /// x
    pub context: Vec<u32>,
    /// x
    pub forced: Vec<u32>,
    /// x
    pub count: usize,
    /// x
    pub stop: Vec<Vec<u32>>,
    /// x
    pub max_tokens: usize,
    /// x
    pub temperature: f64,
    /// x
    pub top_p: f64,
    /// x
    pub top_k: usize,
    /// x
    pub key: Vec<u64>,
}
/// x
#[derive(Clone, Debug)]
pub struct Response {
    /// x
    pub tokens: Vec<u32>,
    /// x
    pub logprobs: Vec<f32>,
    /// x
    pub stopped: bool,
    /// x
    pub request: usize,
}
impl Model {
    /// x
    pub fn generate(
        &self,
        _p: &mut ParameterSet,
        _r: &[Request],
        _context: usize,
    ) -> Result<Vec<Response>> {
        refuse("stub".into())
    }
    /// x
    pub fn logprobs(
        &self,
        _p: &mut ParameterSet,
        _s: &[(Vec<u32>, Vec<u32>)],
        _e: bool,
        _m: Mode,
    ) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        refuse("stub".into())
    }
}
