// The elementwise work of one tile of the contrastive losses, as one kernel each. Compiled at run
// time (NVRTC) after element.cuh.
//
// A tile is a row-major matrix of raw dot products a = x·y. Each kernel forms s = scale·a + bias,
// replaces a by the pair's weight w in place, writes w as bf16 too where asked, and adds three sums
// over the tile to `sums`. The sums have the same bits in every run: a thread adds its elements, the
// block adds its threads in a tree, each block leaves its result in `partials`, and whichever block
// finishes last adds those in order. Only the count of finished blocks is an atomic.

// Threads of a block; a power of two.
#define THREADS 256
// Neighbouring elements a thread takes at once; summed in f32, then in f64, so that devices with
// few f64 units are not held up by them.
#define RUN 4

struct Tile {
    float* values;
    long long stride; // elements from one row to the next
    int rows;
    int columns;
    float scale;
    float bias;
    unsigned short* bf16; // null where not asked for
    long long bf16_stride;
    // Whether every run of elements is aligned for one 16-byte access (8 bytes for bf16).
    int aligned;
};

// Which pairs are positives: a stretch of diagonal, or equal labels where there are labels.
struct Positives {
    int row;
    int column;
    int length;
    const long long* row_labels;
    const long long* column_labels;
};

struct Sums {
    double* partials; // 3 per block
    unsigned int* finished;
    double* sums; // 3
};

struct Siglip {
    // [Σ log σ(z s), Σ w (s − β), Σ w]
    __device__ __forceinline__ float pair(float a, const Tile& tile, int, int, bool positive,
                                          float* sums) const {
        const float product = tile.scale * a;
        const Term term = siglip_term(product + tile.bias, positive);
        sums[0] += term.log_sigmoid;
        sums[1] += term.weight * product;
        sums[2] += term.weight;
        return term.weight;
    }
};

struct Infonce {
    const float* row_log_sum;
    const float* column_log_sum;

    // [Σ w s, Σ over positives of s, Σ w]
    __device__ __forceinline__ float pair(float a, const Tile& tile, int row, int column,
                                          bool positive, float* sums) const {
        const float s = tile.scale * a + tile.bias;
        const float w = infonce_weight(s, row_log_sum[row], column_log_sum[column], positive);
        sums[0] += w * s;
        sums[1] += positive ? s : 0.0f;
        sums[2] += w;
        return w;
    }
};

__device__ __forceinline__ bool is_positive(const Positives& p, int row, int column) {
    if (p.row_labels) return p.row_labels[row] == p.column_labels[column];
    const int along = row - p.row;
    return along >= 0 && along < p.length && column - p.column == along;
}

// `count` (at most RUN) neighbouring elements of a row, from `column` on.
template <typename Loss>
__device__ __forceinline__ void run_of_pairs(const Loss& loss, const Tile& tile,
                                             const Positives& positives, int row, int column,
                                             int count, double* totals) {
    float* at = tile.values + row * tile.stride + column;
    const bool whole = tile.aligned && count == RUN;
    float values[RUN];
    if (whole) {
        const float4 four = *reinterpret_cast<const float4*>(at);
        values[0] = four.x;
        values[1] = four.y;
        values[2] = four.z;
        values[3] = four.w;
    } else {
        for (int i = 0; i < count; ++i) values[i] = at[i];
    }
    float sums[3] = {0.0f, 0.0f, 0.0f};
    for (int i = 0; i < count; ++i) {
        const bool positive = is_positive(positives, row, column + i);
        values[i] = loss.pair(values[i], tile, row, column + i, positive, sums);
    }
    for (int k = 0; k < 3; ++k) totals[k] += sums[k];
    if (whole) {
        *reinterpret_cast<float4*>(at) = make_float4(values[0], values[1], values[2], values[3]);
    } else {
        for (int i = 0; i < count; ++i) at[i] = values[i];
    }
    if (!tile.bf16) return;
    unsigned short* to = tile.bf16 + row * tile.bf16_stride + column;
    if (whole) {
        *reinterpret_cast<ushort4*>(to) = make_ushort4(to_bf16(values[0]), to_bf16(values[1]),
                                                       to_bf16(values[2]), to_bf16(values[3]));
    } else {
        for (int i = 0; i < count; ++i) to[i] = to_bf16(values[i]);
    }
}

// Adds the block's totals up; the result is in thread 0's `totals`.
__device__ __forceinline__ void add_threads(double (*shared)[THREADS], int thread,
                                            double* totals) {
    for (int k = 0; k < 3; ++k) shared[k][thread] = totals[k];
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (thread < half) {
            for (int k = 0; k < 3; ++k) shared[k][thread] += shared[k][thread + half];
        }
        __syncthreads();
    }
    for (int k = 0; k < 3; ++k) totals[k] = shared[k][0];
    __syncthreads();
}

template <typename Loss>
__device__ __forceinline__ void epilogue(const Loss& loss, const Tile& tile,
                                         const Positives& positives, const Sums& out) {
    __shared__ double shared[3][THREADS];
    __shared__ bool last;
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    const int blocks = gridDim.x * gridDim.y;
    const int block = blockIdx.y * gridDim.x + blockIdx.x;

    double totals[3] = {0.0, 0.0, 0.0};
    const int row_step = gridDim.y * blockDim.y;
    const int column_step = gridDim.x * blockDim.x * RUN;
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < tile.rows; row += row_step) {
        for (int column = (blockIdx.x * blockDim.x + threadIdx.x) * RUN; column < tile.columns;
             column += column_step) {
            const int left = tile.columns - column;
            run_of_pairs(loss, tile, positives, row, column, left < RUN ? left : RUN, totals);
        }
    }

    add_threads(shared, thread, totals);
    if (thread == 0) {
        for (int k = 0; k < 3; ++k) out.partials[3 * block + k] = totals[k];
        // The partial sums are visible before the count says so; the count wraps to zero by itself.
        __threadfence();
        last = atomicInc(out.finished, blocks - 1) == (unsigned int)(blocks - 1);
    }
    __syncthreads();
    if (!last) return;

    __threadfence();
    const volatile double* partials = out.partials;
    for (int k = 0; k < 3; ++k) totals[k] = 0.0;
    for (int b = thread; b < blocks; b += THREADS) {
        for (int k = 0; k < 3; ++k) totals[k] += partials[3 * b + k];
    }
    add_threads(shared, thread, totals);
    if (thread == 0) {
        for (int k = 0; k < 3; ++k) out.sums[k] += totals[k];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
siglip_tile(float* values, long long stride, int rows, int columns, float scale, float bias,
            unsigned short* bf16, long long bf16_stride, int aligned, int row, int column,
            int length, const long long* row_labels, const long long* column_labels,
            double* partials, unsigned int* finished, double* sums) {
    const Tile tile = {values, stride, rows, columns, scale, bias, bf16, bf16_stride, aligned};
    const Positives positives = {row, column, length, row_labels, column_labels};
    const Sums out = {partials, finished, sums};
    epilogue(Siglip{}, tile, positives, out);
}

extern "C" __global__ void __launch_bounds__(THREADS)
infonce_tile(float* values, long long stride, int rows, int columns, float scale, float bias,
             unsigned short* bf16, long long bf16_stride, int aligned, int row, int column,
             int length, const long long* row_labels, const long long* column_labels,
             double* partials, unsigned int* finished, double* sums, const float* row_log_sum,
             const float* column_log_sum) {
    const Tile tile = {values, stride, rows, columns, scale, bias, bf16, bf16_stride, aligned};
    const Positives positives = {row, column, length, row_labels, column_labels};
    const Sums out = {partials, finished, sums};
    epilogue(Infonce{row_log_sum, column_log_sum}, tile, positives, out);
}
