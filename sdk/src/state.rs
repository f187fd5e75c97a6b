//! Writing and reading the bytes of `save` and `restore`.
//!
//! ```
//! use espalier_sdk::state::{Reader, Writer};
//!
//! let bytes = Writer::new(1).u64(7).f64(0.5).text("warm").finish();
//! let mut state = Reader::new(&bytes, 1)?;
//! assert_eq!((state.u64()?, state.f64()?, state.text()?), (7, 0.5, "warm".to_string()));
//! state.end()?;
//! # Ok::<(), espalier_sdk::Error>(())
//! ```

use crate::run::Error;

/// Puts values one after the other, after a version byte.
///
/// ```
/// # use espalier_sdk::state::Writer;
/// let bytes = Writer::new(1).u64(7).text("warm").finish();
/// assert_eq!(bytes[0], 1);
/// ```
pub struct Writer(Vec<u8>);

impl Writer {
    /// Begins with the version of the plugin's own format.
    ///
    /// ```
    /// # use espalier_sdk::state::Writer;
    /// assert_eq!(Writer::new(3).finish(), [3]);
    /// ```
    pub fn new(version: u8) -> Writer {
        Writer(vec![version])
    }

    /// A whole number.
    ///
    /// ```
    /// # use espalier_sdk::state::Writer;
    /// assert_eq!(Writer::new(1).u64(7).finish().len(), 1 + 8);
    /// ```
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A number, to the last bit.
    ///
    /// ```
    /// # use espalier_sdk::state::{Reader, Writer};
    /// let bytes = Writer::new(1).f64(0.1).finish();
    /// assert_eq!(Reader::new(&bytes, 1)?.f64()?, 0.1);
    /// # Ok::<(), espalier_sdk::Error>(())
    /// ```
    pub fn f64(self, value: f64) -> Self {
        self.u64(value.to_bits())
    }

    /// Bytes with their length.
    ///
    /// ```
    /// # use espalier_sdk::state::{Reader, Writer};
    /// let bytes = Writer::new(1).bytes(&[1, 2, 3]).finish();
    /// assert_eq!(Reader::new(&bytes, 1)?.bytes()?, [1, 2, 3]);
    /// # Ok::<(), espalier_sdk::Error>(())
    /// ```
    pub fn bytes(self, value: &[u8]) -> Self {
        let mut with_length = self.u64(value.len() as u64);
        with_length.0.extend(value);
        with_length
    }

    /// A text.
    ///
    /// ```
    /// # use espalier_sdk::state::{Reader, Writer};
    /// let bytes = Writer::new(1).text("warm").finish();
    /// assert_eq!(Reader::new(&bytes, 1)?.text()?, "warm");
    /// # Ok::<(), espalier_sdk::Error>(())
    /// ```
    pub fn text(self, value: &str) -> Self {
        self.bytes(value.as_bytes())
    }

    /// Several numbers with their count.
    ///
    /// ```
    /// # use espalier_sdk::state::{Reader, Writer};
    /// let bytes = Writer::new(1).f64s(&[0.5, 0.25]).finish();
    /// assert_eq!(Reader::new(&bytes, 1)?.f64s()?, [0.5, 0.25]);
    /// # Ok::<(), espalier_sdk::Error>(())
    /// ```
    pub fn f64s(self, values: &[f64]) -> Self {
        values
            .iter()
            .fold(self.u64(values.len() as u64), |state, &x| state.f64(x))
    }

    /// The bytes.
    ///
    /// ```
    /// # use espalier_sdk::state::Writer;
    /// let bytes: Vec<u8> = Writer::new(1).finish();
    /// assert_eq!(bytes.len(), 1);
    /// ```
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Takes values out in the order in which they were put. Anything that does not fit is an
/// `invalid-state` error, never a panic.
///
/// ```
/// # use espalier_sdk::state::{Reader, Writer};
/// let bytes = Writer::new(1).u64(7).finish();
/// let mut state = Reader::new(&bytes, 1)?;
/// assert_eq!(state.u64()?, 7);
/// state.end()?;
/// # Ok::<(), espalier_sdk::Error>(())
/// ```
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Checks the version byte.
    ///
    /// ```
    /// # use espalier_sdk::state::{Reader, Writer};
    /// let bytes = Writer::new(1).finish();
    /// assert!(Reader::new(&bytes, 1).is_ok());
    /// assert!(Reader::new(&bytes, 2).is_err());
    /// ```
    pub fn new(bytes: &'a [u8], version: u8) -> Result<Reader<'a>, Error> {
        match bytes.split_first() {
            Some((&found, rest)) if found == version => Ok(Reader(rest)),
            Some((&found, _)) => Err(Error::invalid_state(format!(
                "the saved state has format {found}, this version of the plugin reads format {version}"
            ))),
            None => Err(Error::invalid_state("the saved state is empty")),
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Error> {
        if n > self.0.len() {
            return Err(Error::invalid_state(format!(
                "the saved state ends early: {n} bytes wanted, {} left",
                self.0.len()
            )));
        }
        let (taken, rest) = self.0.split_at(n);
        self.0 = rest;
        Ok(taken)
    }

    /// A whole number.
    ///
    /// ```
    /// # use espalier_sdk::state::{Reader, Writer};
    /// let bytes = Writer::new(1).u64(7).finish();
    /// assert_eq!(Reader::new(&bytes, 1)?.u64()?, 7);
    /// # Ok::<(), espalier_sdk::Error>(())
    /// ```
    pub fn u64(&mut self) -> Result<u64, Error> {
        let mut word = [0; 8];
        word.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(word))
    }

    /// A number.
    ///
    /// ```
    /// # use espalier_sdk::state::{Reader, Writer};
    /// let bytes = Writer::new(1).f64(-0.5).finish();
    /// assert_eq!(Reader::new(&bytes, 1)?.f64()?, -0.5);
    /// # Ok::<(), espalier_sdk::Error>(())
    /// ```
    pub fn f64(&mut self) -> Result<f64, Error> {
        self.u64().map(f64::from_bits)
    }

    /// Bytes with their length.
    ///
    /// ```
    /// # use espalier_sdk::state::{Reader, Writer};
    /// let bytes = Writer::new(1).bytes(b"abc").finish();
    /// assert_eq!(Reader::new(&bytes, 1)?.bytes()?, b"abc");
    /// # Ok::<(), espalier_sdk::Error>(())
    /// ```
    pub fn bytes(&mut self) -> Result<&'a [u8], Error> {
        let n = self.u64()?;
        self.take(usize::try_from(n).unwrap_or(usize::MAX))
    }

    /// A text.
    ///
    /// ```
    /// # use espalier_sdk::state::{Reader, Writer};
    /// let bytes = Writer::new(1).text("cold").finish();
    /// assert_eq!(Reader::new(&bytes, 1)?.text()?, "cold");
    /// # Ok::<(), espalier_sdk::Error>(())
    /// ```
    pub fn text(&mut self) -> Result<String, Error> {
        let bytes = self.bytes()?;
        String::from_utf8(bytes.to_vec())
            .map_err(|_| Error::invalid_state("the saved text is not UTF-8"))
    }

    /// Several numbers with their count.
    ///
    /// ```
    /// # use espalier_sdk::state::{Reader, Writer};
    /// let bytes = Writer::new(1).f64s(&[1.0, 2.0]).finish();
    /// assert_eq!(Reader::new(&bytes, 1)?.f64s()?, [1.0, 2.0]);
    /// # Ok::<(), espalier_sdk::Error>(())
    /// ```
    pub fn f64s(&mut self) -> Result<Vec<f64>, Error> {
        let n = self.u64()?;
        let bytes = self.take(usize::try_from(n.saturating_mul(8)).unwrap_or(usize::MAX))?;
        let mut words = Reader(bytes);
        (0..n).map(|_| words.f64()).collect()
    }

    /// Nothing may be left.
    ///
    /// ```
    /// # use espalier_sdk::state::{Reader, Writer};
    /// let bytes = Writer::new(1).u64(7).finish();
    /// assert!(Reader::new(&bytes, 1)?.end().is_err()); // a number is left
    /// # Ok::<(), espalier_sdk::Error>(())
    /// ```
    pub fn end(self) -> Result<(), Error> {
        match self.0.len() {
            0 => Ok(()),
            n => Err(Error::invalid_state(format!(
                "the saved state has {n} bytes too many"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let bytes = Writer::new(3)
            .u64(u64::MAX)
            .f64s(&[f64::NEG_INFINITY, -0.0])
            .text("käse")
            .finish();
        let mut state = Reader::new(&bytes, 3).unwrap();
        assert_eq!(state.u64().unwrap(), u64::MAX);
        let numbers = state.f64s().unwrap();
        assert_eq!(numbers[0], f64::NEG_INFINITY);
        assert_eq!(numbers[1].to_bits(), (-0.0_f64).to_bits());
        assert_eq!(state.text().unwrap(), "käse");
        state.end().unwrap();
    }

    #[test]
    fn strange_bytes_are_errors() {
        assert!(Reader::new(&[], 1).is_err());
        assert!(Reader::new(&[2, 0], 1).is_err());
        assert!(Reader::new(&[1, 0, 0], 1).unwrap().u64().is_err());
        let huge = Writer::new(1).u64(u64::MAX).finish();
        assert!(Reader::new(&huge, 1).unwrap().bytes().is_err());
        assert!(Reader::new(&huge, 1).unwrap().f64s().is_err());
        let not_text = Writer::new(1).bytes(&[0xff]).finish();
        assert!(Reader::new(&not_text, 1).unwrap().text().is_err());
        assert!(Reader::new(&[1, 9], 1).unwrap().end().is_err());
    }
}
