//! Copies of views into row-major order.

use crate::dtype::Element;
use crate::layout::{Layout, Walk};
use crate::threads::{BLOCK, for_blocks};

/// Rows and columns of the tiles in which a transposed view is copied: a tile's lines on both sides stay
/// in the nearest cache.
const TILE: usize = 32;

/// Writes the elements that `layout` shows of `source` to `out`, row-major.
pub(crate) fn copy_out<E: Element>(source: &[E], layout: &Layout, out: &mut [E]) {
    if out.is_empty() {
        return;
    }
    let walk = Walk::new(&layout.shape, [(&layout.strides, layout.offset)]);
    let [stride] = walk.inner_strides();
    let last = walk.sizes.len() - 1;
    if stride > 1
        && let Some(axis) = (0..last)
            .rev()
            .find(|&a| walk.strides_at(a)[0] == 1 && walk.sizes[a] >= 4)
    {
        return copy_tiles(source, &walk, axis, out);
    }
    let total = out.len();
    for_blocks(out, BLOCK, total, |first, chunk| {
        walk.runs(first..first + chunk.len(), |at, len, [start]| {
            let to = &mut chunk[at - first..at - first + len];
            match stride {
                1 => to.copy_from_slice(&source[start..start + len]),
                0 => to.fill(source[start]),
                _ => {
                    for (o, x) in to.iter_mut().zip(source[start..].iter().step_by(stride)) {
                        *o = *x;
                    }
                }
            }
        });
    });
}

/// As [`copy_out`] where elements lie side by side along `axis`, which is not the innermost.
fn copy_tiles<E: Element>(source: &[E], walk: &Walk<1>, axis: usize, out: &mut [E]) {
    let last = walk.sizes.len() - 1;
    let (tall, wide) = (walk.sizes[axis], walk.sizes[last]);
    let [wide_stride] = walk.inner_strides();
    // Between the two axes of a tile may lie others; one plane has their product of tile columns.
    let between: usize = walk.sizes[axis + 1..last].iter().product();
    let row = between * wide;
    let item = tall * row;
    let one_item = item == out.len();
    let total = out.len();
    let block = if one_item { TILE * row } else { item };
    for_blocks(out, block, total, |first, chunk| {
        let from_row = first % item / row;
        let rows = chunk.len() / row;
        for middle in 0..between {
            // Where row `from_row`, column 0 of this plane lies in the source.
            let [start] = walk.place(first + middle * wide);
            for tile_row in (0..rows).step_by(TILE) {
                let tile_rows = TILE.min(rows - tile_row);
                for tile_column in (0..wide).step_by(TILE) {
                    let tile_columns = TILE.min(wide - tile_column);
                    for r in tile_row..tile_row + tile_rows {
                        let to =
                            &mut chunk[r * row + middle * wide + tile_column..][..tile_columns];
                        let from = &source[start + r + tile_column * wide_stride..];
                        for (o, x) in to.iter_mut().zip(from.iter().step_by(wide_stride)) {
                            *o = *x;
                        }
                    }
                }
            }
        }
        debug_assert!(from_row + rows <= tall);
    });
}
