/* Stands in for the CUDA driver library where no driver is installed: programs link against it, and every call says
 * that it is a stub. `cuda_functions.h` has one line STUB(name) for each function of the driver API; setup-cuda.sh
 * makes it from cuda.h. No argument is read, so one signature serves all of them. */
#define CUDA_ERROR_STUB_LIBRARY 34

#define STUB(name) \
    int name(void) { return CUDA_ERROR_STUB_LIBRARY; }
#include "cuda_functions.h"

/* Callers print what these two hand back: it must be a string, whatever the error. */
int cuGetErrorName(int error, const char **name) {
    *name = error == CUDA_ERROR_STUB_LIBRARY ? "CUDA_ERROR_STUB_LIBRARY" : "CUDA_ERROR_UNKNOWN";
    return 0;
}

int cuGetErrorString(int error, const char **text) {
    *text = error == CUDA_ERROR_STUB_LIBRARY
                ? "the program runs with a stub of the CUDA driver library: no driver is installed"
                : "unknown error (stub of the CUDA driver library)";
    return 0;
}

/* Callers may read the out-parameters without a look at the result. */
int cuDriverGetVersion(int *version) {
    *version = 0;
    return CUDA_ERROR_STUB_LIBRARY;
}

int cuGetProcAddress(const char *symbol, void **function) {
    (void)symbol;
    *function = 0;
    return CUDA_ERROR_STUB_LIBRARY;
}

int cuGetProcAddress_v2(const char *symbol, void **function) {
    return cuGetProcAddress(symbol, function);
}
