#include "wire.cuh"
