//! What a plugin author sees: tensors, traits and one export! line.
