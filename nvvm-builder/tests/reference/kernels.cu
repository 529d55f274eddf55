// One kernel of the fixture in CUDA C++.
extern "C" __global__ void multiply_add(float *out, const float *a, const float *b, const float *c) {
    int i = threadIdx.x;
    out[i] = a[i] * b[i] + fabsf(c[i]);
}
