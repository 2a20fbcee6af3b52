// Runs the kernels of epilogue.cu on the host, thread by thread: every thread of a block is a
// thread here, blocks run one after another. Reads one case from standard input and writes what the
// kernel left behind to standard output, both as plain binary numbers (see tests.rs).

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include <pthread.h>

struct Index {
    int x, y;
};
static thread_local Index threadIdx;
static Index blockIdx, blockDim, gridDim;
static pthread_barrier_t block_barrier;

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) ushort4 {
    unsigned short x, y, z, w;
};
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static ushort4 make_ushort4(unsigned short x, unsigned short y, unsigned short z,
                            unsigned short w) {
    return {x, y, z, w};
}
static void __syncthreads() { pthread_barrier_wait(&block_barrier); }
static void __threadfence() {}
static unsigned int atomicInc(unsigned int* at, unsigned int limit) {
    const unsigned int old = *at;
    *at = old >= limit ? 0 : old + 1;
    return old;
}

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static

#include "element.cuh"
#include "epilogue.cu"

template <typename T>
static std::vector<T> read(size_t count) {
    std::vector<T> values(count);
    if (std::fread(values.data(), sizeof(T), count, stdin) != count) std::exit(2);
    return values;
}

template <typename T>
static void write(const T* values, size_t count) {
    if (std::fwrite(values, sizeof(T), count, stdout) != count) std::exit(3);
}

int main() {
    // infonce, rows, columns, stride, grid x, y, block x, y, row, column, length, labels, aligned,
    // launches
    const auto shape = read<int>(14);
    const auto scalars = read<float>(2);
    const size_t rows = shape[1], columns = shape[2], stride = shape[3];
    const size_t elements = rows * stride;
    auto values = read<float>(elements);
    const auto row_labels = read<long long>(shape[11] ? rows : 0);
    const auto column_labels = read<long long>(shape[11] ? columns : 0);
    const auto row_sums = read<float>(shape[0] ? rows : 0);
    const auto column_sums = read<float>(shape[0] ? columns : 0);

    gridDim = {shape[4], shape[5]};
    blockDim = {shape[6], shape[7]};
    const int threads = blockDim.x * blockDim.y;
    float* tile = static_cast<float*>(std::aligned_alloc(16, (elements * 4 + 15) / 16 * 16));
    auto* bf16 =
        static_cast<unsigned short*>(std::aligned_alloc(16, (elements * 2 + 15) / 16 * 16));
    std::vector<double> partials(3 * gridDim.x * gridDim.y, NAN);
    unsigned int finished = 0;
    double sums[3] = {0.0, 0.0, 0.0};

    for (int launch = 0; launch < shape[13]; ++launch) {
        std::copy(values.begin(), values.end(), tile);
        std::fill(bf16, bf16 + elements, (unsigned short)0);
        // Backwards, so that the last block to finish is not the last by number.
        for (int block = gridDim.x * gridDim.y - 1; block >= 0; --block) {
            blockIdx = {block % gridDim.x, block / gridDim.x};
            pthread_barrier_init(&block_barrier, nullptr, threads);
            std::vector<std::thread> all;
            for (int t = 0; t < threads; ++t) {
                all.emplace_back([&, t] {
                    threadIdx = {t % blockDim.x, t / blockDim.x};
                    const long long* of_rows = shape[11] ? row_labels.data() : nullptr;
                    const long long* of_columns = shape[11] ? column_labels.data() : nullptr;
                    if (shape[0]) {
                        infonce_tile(tile, stride, rows, columns, scalars[0], scalars[1], bf16,
                                     stride, shape[12], shape[8], shape[9], shape[10], of_rows,
                                     of_columns, partials.data(), &finished, sums,
                                     row_sums.data(), column_sums.data());
                    } else {
                        siglip_tile(tile, stride, rows, columns, scalars[0], scalars[1], bf16,
                                    stride, shape[12], shape[8], shape[9], shape[10], of_rows,
                                    of_columns, partials.data(), &finished, sums);
                    }
                });
            }
            for (auto& thread : all) thread.join();
            pthread_barrier_destroy(&block_barrier);
        }
    }
    write(tile, elements);
    write(bf16, elements);
    write(sums, 3);
    write(&finished, 1);
    return 0;
}
