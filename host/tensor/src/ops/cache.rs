//! Attention of new queries against keys and values kept from earlier ones, without gradients.

use std::ops::Range;

use crate::dtype::{DType, Element, with_float};
use crate::error::{Error, Result};
use crate::lanes::{LANES, Real, max_of, simd_fn, sum_pairs, sum_with};
use crate::ops::rows::one_float_type;
use crate::tensor::Tensor;
use crate::threads::for_blocks;

/// Keys and values of positions that were seen before, of one attention layer: two tables [slots, features].
/// Which slots belong together, and in which order, the caller knows.
#[derive(Debug)]
pub struct KeyValueCache {
    keys: Tensor,
    values: Tensor,
}

/// One new position: where its key and value go and which slots it sees.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Where its own key and value are kept.
    pub slot: usize,
    /// What it sees: the slots of both ranges, its own among them if it shall see itself.
    pub sees: [Range<usize>; 2],
}

/// Queries that one thread takes at a time.
const TOGETHER: usize = 8;

impl KeyValueCache {
    /// A cache of so many slots of zeros.
    ///
    /// # Errors
    /// [`Error::DType`] unless floating point, [`Error::Size`], [`Error::Budget`].
    pub fn new(slots: usize, features: usize, dtype: DType) -> Result<KeyValueCache> {
        const OP: &str = "key_value_cache";
        if !dtype.is_float() {
            return Err(Error::DType {
                op: OP,
                found: vec![dtype],
                expected: "f32 or f64",
            });
        }
        let shape = [slots, features];
        Ok(KeyValueCache {
            keys: Tensor::zeros_for(OP, &shape, dtype)?,
            values: Tensor::zeros_for(OP, &shape, dtype)?,
        })
    }

    /// The number of slots.
    pub fn slots(&self) -> usize {
        self.keys.shape()[0]
    }

    /// A cache of so many slots that keeps some of this one's: each move is a range of slots here and the
    /// first slot there.
    ///
    /// # Errors
    /// [`Error::Argument`] for a move from or to slots that do not exist, [`Error::Size`], [`Error::Budget`].
    pub fn moved(&self, slots: usize, moves: &[(Range<usize>, usize)]) -> Result<KeyValueCache> {
        const OP: &str = "key_value_cache";
        let fits = moves.iter().all(|(from, to)| {
            from.start <= from.end
                && from.end <= self.slots()
                && to.checked_add(from.len()).is_some_and(|last| last <= slots)
        });
        if !fits {
            return Err(Error::argument(OP, "a move lies outside the cache"));
        }
        let features = self.keys.shape()[1];
        let copy = |table: &Tensor| {
            with_float!(OP, table.dtype(), T => {
                let old = table.data::<T>()?;
                Tensor::build::<T>(OP, &[slots, features], |new| {
                    for (from, to) in moves {
                        new[to * features..(to + from.len()) * features]
                            .copy_from_slice(&old[from.start * features..from.end * features]);
                    }
                })
            })
        };
        Ok(KeyValueCache {
            keys: copy(&self.keys)?,
            values: copy(&self.values)?,
        })
    }

    /// Keeps the keys and values of new positions, then lets each look: softmax(q kT / sqrt(width)) v by
    /// heads of width features / heads. `projected` is [queries, 3 features]: query, key and value of each
    /// side by side. Gives [queries, features]. Queries may see each other's slots. Records no graph. Each
    /// row of the result depends on its query and the slots it sees alone.
    ///
    /// # Errors
    /// [`Error::Shape`] where the sizes do not fit, [`Error::Argument`] for a slot that does not exist or a
    /// query that sees none, [`Error::DType`], [`Error::Budget`].
    pub fn attend(
        &mut self,
        projected: &Tensor,
        heads: usize,
        queries: &[Query],
    ) -> Result<Tensor> {
        const OP: &str = "attend";
        let (slots, features) = (self.slots(), self.keys.shape()[1]);
        one_float_type(OP, &[projected, &self.keys])?;
        if projected.shape() != [queries.len(), 3 * features]
            || features == 0
            || heads == 0
            || features % heads != 0
        {
            return Err(Error::shape(
                OP,
                format!(
                    "needs [{}, {}] for {} queries, and heads that divide {features}, got {heads}",
                    queries.len(),
                    3 * features,
                    queries.len()
                ),
                &[projected.shape()],
            ));
        }
        let exists = |query: &Query| {
            query.slot < slots
                && query.sees.iter().all(|range| range.end <= slots)
                && query.sees.iter().any(|range| !range.is_empty())
        };
        if !queries.iter().all(exists) {
            return Err(Error::argument(
                OP,
                format!("a query names slots outside 0 to {slots}, or sees none"),
            ));
        }
        with_float!(OP, projected.dtype(), T => self.attend_typed::<T>(projected, heads, queries))
    }

    fn attend_typed<T: Element + Real>(
        &mut self,
        projected: &Tensor,
        heads: usize,
        queries: &[Query],
    ) -> Result<Tensor> {
        const OP: &str = "attend";
        let features = self.keys.shape()[1];
        let projected = projected.dense(OP)?;
        let rows = projected.data::<T>()?;
        for (table, part) in [(&mut self.keys, 1), (&mut self.values, 2)] {
            let Some(kept) = table.data_mut::<T>() else {
                return Err(Error::Internal {
                    op: OP,
                    problem: "the cache is shared".into(),
                });
            };
            for (query, row) in queries.iter().zip(rows.chunks_exact(3 * features)) {
                kept[query.slot * features..(query.slot + 1) * features]
                    .copy_from_slice(&row[part * features..(part + 1) * features]);
            }
        }
        let (keys, values) = (self.keys.data::<T>()?, self.values.data::<T>()?);
        let seen: usize = queries
            .iter()
            .map(|query| query.sees[0].len() + query.sees[1].len())
            .sum();
        Tensor::build::<T>(OP, &[queries.len(), features], |out| {
            let work = seen.saturating_mul(features);
            for_blocks(out, TOGETHER * features, work, |first, out| {
                let mut scores = Vec::new();
                let first = first / features;
                for (at, out) in out.chunks_exact_mut(features).enumerate() {
                    let at = first + at;
                    let query = &rows[at * 3 * features..at * 3 * features + features];
                    look(
                        query,
                        keys,
                        values,
                        heads,
                        &queries[at].sees,
                        &mut scores,
                        out,
                    );
                }
            });
        })
    }
}

simd_fn! {
    /// One query, all heads. `scores` is scratch space: [heads, seen], each row filled up to whole vectors
    /// with -inf, which has no share.
    fn look<T>(
        query: &[T],
        keys: &[T],
        values: &[T],
        heads: usize,
        sees: &[Range<usize>; 2],
        scores: &mut Vec<T>,
        out: &mut [T],
    ) {
        let features = query.len();
        let width = features / heads;
        let seen = sees[0].len() + sees[1].len();
        let scale = T::of(1.0 / (width as f64).sqrt());
        let row = seen.next_multiple_of(LANES);
        scores.clear();
        scores.resize(heads * row, T::NEG_INFINITY);
        let mut at = 0;
        for range in sees {
            for key in keys[range.start * features..range.end * features].chunks_exact(features) {
                for (head, (q, k)) in query.chunks_exact(width).zip(key.chunks_exact(width)).enumerate() {
                    scores[head * row + at] = sum_pairs(q, k, |q, k| q * k) * scale;
                }
                at += 1;
            }
        }
        for scores in scores.chunks_exact_mut(row) {
            let max = max_of(scores);
            for score in scores.iter_mut() {
                *score = (*score - max).fast_exp();
            }
            let share = T::ONE / sum_with(scores, |p| p);
            for score in scores.iter_mut() {
                *score *= share;
            }
        }
        out.fill(T::ZERO);
        let mut at = 0;
        for range in sees {
            for value in values[range.start * features..range.end * features].chunks_exact(features) {
                for (head, (out, v)) in out.chunks_exact_mut(width).zip(value.chunks_exact(width)).enumerate() {
                    let share = scores[head * row + at];
                    for (out, &v) in out.iter_mut().zip(v) {
                        *out += share * v;
                    }
                }
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ops;
    use crate::random::{Key, normal};

    #[test]
    fn looking_back_agrees_with_attention_over_the_whole_series() {
        let (steps, heads, width) = (7, 3, 4);
        let features = heads * width;
        for dtype in [DType::F32, DType::F64] {
            let projected = normal(&Key::new(&[1]), &[steps, 3 * features], dtype).unwrap();
            let parts =
                ops::reshape(&projected, &[steps as i64, 3, heads as i64, width as i64]).unwrap();
            let parts = ops::permute_dims(&parts, &[1, 2, 0, 3]).unwrap();
            let part = |i: isize| {
                let part = ops::slice(&parts, 0, i, i + 1).unwrap();
                ops::reshape(&part, &[heads as i64, steps as i64, width as i64]).unwrap()
            };
            let whole = ops::scaled_dot_product_attention(&part(0), &part(1), &part(2), None, true)
                .unwrap();
            let whole = ops::permute_dims(&whole, &[1, 0, 2])
                .unwrap()
                .to_list()
                .unwrap();
            // Four steps at once, then one by one into slots that lie elsewhere.
            let mut cache = KeyValueCache::new(6, features, dtype).unwrap();
            let first: Vec<Query> = (0..4)
                .map(|i| Query {
                    slot: 2 + i,
                    sees: [2..3 + i, 0..0],
                })
                .collect();
            let rows = |from: isize, to: isize| ops::slice(&projected, 0, from, to).unwrap();
            let mut found = cache
                .attend(&rows(0, 4), heads, &first)
                .unwrap()
                .to_list()
                .unwrap();
            let mut cache = cache.moved(20, &[(2..6, 0)]).unwrap();
            for i in 4..7 {
                let query = Query {
                    slot: 10 + i,
                    sees: [0..4, 14..11 + i],
                };
                let one = cache
                    .attend(&rows(i as isize, i as isize + 1), heads, &[query])
                    .unwrap();
                found.extend(one.to_list().unwrap());
            }
            for (a, b) in found.iter().zip(&whole) {
                assert!((a - b).abs() < 1e-6, "{a} and {b}");
            }
        }
    }

    #[test]
    fn slots_that_do_not_exist_are_refused() {
        let mut cache = KeyValueCache::new(2, 4, DType::F32).unwrap();
        let one = Tensor::zeros(&[1, 12], DType::F32).unwrap();
        let outside = Query {
            slot: 2,
            sees: [0..1, 0..0],
        };
        let blind = Query::default();
        assert!(cache.attend(&one, 2, &[outside]).is_err());
        assert!(cache.attend(&one, 2, &[blind]).is_err());
        assert!(cache.moved(3, &[(0..2, 2)]).is_err());
    }
}
