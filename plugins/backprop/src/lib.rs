//! Trainer: backpropagation.
