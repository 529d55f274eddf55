// Every kernel of device/ once more, in CUDA C++: only to be compared with. One translation unit, as a module of kernels in
// Rust is one.
#include "low_latency/combine.cu"
#include "low_latency/dispatch.cu"
#include "quantize.cu"
#include "throughput/combine.cu"
#include "throughput/dispatch.cu"
#include "throughput/layout.cu"
#include "throughput/reduce.cu"
#include "workload.cu"
