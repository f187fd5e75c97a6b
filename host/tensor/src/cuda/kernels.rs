//! CUDA source, compiled by NVRTC when first used.

/// Sums and rectified values of contiguous f32 elements. Each thread takes elements a grid apart, so any
/// grid serves any length. Without fused multiply-adds to begin with, results equal the processor's.
pub const ELEMENTWISE: &str = r#"
extern "C" __global__ void add_f32(const float *a, const float *b, float *out, unsigned long long n) {
    unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        out[i] = a[i] + b[i];
    }
}

// 0 for negative values, NaN for NaN.
extern "C" __global__ void relu_f32(const float *a, float *out, unsigned long long n) {
    unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        out[i] = a[i] <= 0.0f ? 0.0f : a[i];
    }
}
"#;
