//! Tensors, kernels and autograd of any order. Knows no WebAssembly.
