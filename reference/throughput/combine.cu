#include "../wire.cuh"
