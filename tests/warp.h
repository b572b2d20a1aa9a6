// What tiny.cu needs of CUDA, played by one thread of the operating system for each thread of a GPU.
// Whatever warps do together waits for all 32, and between that nothing is in step: a value that is read
// before it was written here is one there too. Blocks run one after the other.

#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

using std::min;

#define __CUDACC__
#define __device__
#define __forceinline__ inline
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__

struct Place {
    int x;
};
static thread_local Place threadIdx;
static Place blockIdx, gridDim;

static double __dadd_rn(double a, double b) { return a + b; }
static double __dmul_rn(double a, double b) { return a * b; }
static double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
static double __ddiv_rn(double a, double b) { return a / b; }
static float __fadd_rn(float a, float b) { return a + b; }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

template <class To, class From> static To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
static int __float_as_int(float a) { return bits<int>(a); }
static double __longlong_as_double(long long a) { return bits<double>(a); }
static int __double2loint(double a) { return int(bits<long long>(a)); }
static int __double2hiint(double a) { return int(bits<long long>(a) >> 32); }
static double __hiloint2double(int first, int last) {
    return bits<double>((long long)first << 32 | (unsigned)last);
}

static pthread_barrier_t warps[32], block;
static double told[32][32];  // holds every float and every int

static int warp() { return threadIdx.x / 32; }
static int lane() { return threadIdx.x % 32; }
static void __syncwarp() { pthread_barrier_wait(&warps[warp()]); }
static void __syncthreads() { pthread_barrier_wait(&block); }

template <class T> static T from(T mine, int other) {
    told[warp()][lane()] = mine;
    __syncwarp();
    const T theirs = T(told[warp()][other]);
    __syncwarp();
    return theirs;
}
template <class T> static T __shfl_xor_sync(unsigned, T mine, int bit) {
    return from(mine, lane() ^ bit);
}
template <class T> static T __shfl_sync(unsigned, T mine, int source, int width) {
    return from(mine, lane() / width * width + source);
}
static bool __any_sync(unsigned, bool mine) {
    bool any = false;
    for (int other = 0; other < 32; ++other) any |= from(mine ? 1 : 0, other) != 0;
    return any;
}
static int atomicAdd(int *counter, int more) { return __sync_fetch_and_add(counter, more); }

static void play(int blocks, int threads, void *memory, size_t bytes, void (*kernel)()) {
    gridDim.x = blocks;
    pthread_barrier_init(&block, nullptr, threads);
    for (int w = 0; w < threads / 32; ++w) pthread_barrier_init(&warps[w], nullptr, 32);
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        std::memset(memory, 0xff, bytes);  // nan, until it is written
        std::vector<std::thread> all;
        for (int t = 0; t < threads; ++t)
            all.emplace_back([=] {
                threadIdx.x = t;
                kernel();
            });
        for (std::thread &one : all) one.join();
    }
}
