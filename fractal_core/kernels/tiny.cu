// Tiny networks on a GPU, to the bits of contract.py. cuda.py compiles this file and launches it; the
// tests compile the same text with a C++ compiler, and so run its arithmetic where no GPU is.
//
// A group of LANES threads trains one point. Thread t owns the hidden units t, t + LANES, ...: their
// columns of W1 and of its gradient never leave its registers, nor do the samples at hand between the
// forward and the backward pass. So every sum over inputs or samples runs in one thread, in order, and
// only the sum over hidden units crosses threads, by the halving that the contract asks for. All points
// share the samples and the table of tanh, which lie in shared memory.
//
// The grid is as large as the card and stays until no point is left: a group whose run ends takes the
// next point while its neighbours go on, and threads never wait for a run that is not theirs.
//
// Every multiplication, addition and fused multiply-add is named, and the compilers may fuse no others.
// A thread keeps what belongs to it in an array over HERE: one element on a GPU, and on the host, where
// one thread plays the whole group, one for each of its lanes.
//
// layout.py gives, on the compiler's command line: REAL; WIDTH, LANES and UNITS of a lane; SAMPLES taken
// at a time; THREADS of a block; TANH, RELU or IDENTITY; MINIBATCH; RESIDENT, if the samples fit into
// shared memory; V_MOST; and the recipe of tanh: CELLS, LIMIT, ODD, TERMS, MAGIC, MASK.

using Real = REAL;

#ifdef __CUDACC__
#define DEVICE __device__ __forceinline__
constexpr int HERE = 1;
#define INF __longlong_as_double(0x7ff0000000000000LL)

DEVICE double add(double a, double b) { return __dadd_rn(a, b); }
DEVICE double mul(double a, double b) { return __dmul_rn(a, b); }
DEVICE double fma_(double a, double b, double c) { return __fma_rn(a, b, c); }
DEVICE double divide(double a, double b) { return __ddiv_rn(a, b); }
DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
DEVICE float mul(float a, float b) { return __fmul_rn(a, b); }
DEVICE float fma_(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE int last_bits(double a) { return __double2loint(a); }
DEVICE int last_bits(float a) { return __float_as_int(a); }
DEVICE int first_bits(double a) { return __double2hiint(a); }
DEVICE double from_bits(int first, int last) { return __hiloint2double(first, last); }
DEVICE double with_sign(double a, double b) { return copysign(a, b); }
DEVICE float with_sign(float a, float b) { return copysignf(a, b); }
DEVICE double size(double a) { return fabs(a); }
DEVICE float size(float a) { return fabsf(a); }
#else
#include <cmath>
#include <cstring>
#define DEVICE static inline
constexpr int HERE = LANES;
#define INF HUGE_VAL

template <class T> DEVICE T add(T a, T b) { return a + b; }
template <class T> DEVICE T mul(T a, T b) { return a * b; }
template <class T> DEVICE T fma_(T a, T b, T c) { return std::fma(a, b, c); }
template <class T> DEVICE T divide(T a, T b) { return a / b; }
template <class T> DEVICE T with_sign(T a, T b) { return std::copysign(a, b); }
template <class T> DEVICE T size(T a) { return std::fabs(a); }
template <class T> DEVICE int last_bits(T a) {
    int bits;  // the first four bytes, on a processor that puts the lowest first
    std::memcpy(&bits, &a, sizeof bits);
    return bits;
}
DEVICE int first_bits(double a) {
    int bits[2];
    std::memcpy(bits, &a, sizeof bits);
    return bits[1];
}
DEVICE double from_bits(int first, int last) {
    const int bits[2] = {last, first};
    double a;
    std::memcpy(&a, bits, sizeof a);
    return a;
}
#endif

constexpr int PADDED = LANES * UNITS;                           // the least power of two >= WIDTH
constexpr int CHUNK = 16 / sizeof(Real);                        // numbers in one load
constexpr int STRIDE = (WIDTH + CHUNK - 1) / CHUNK * CHUNK;     // from row to row of the inputs
constexpr int ENTRIES = int(LIMIT * CELLS) + 1;                 // of the table; the last is tanh = 1

// What a call is about; cuda.py fills the same structure.
struct Job {
    const Real *hyper, *w1, *w2, *inputs, *targets, *table;
    const int *batches, *record;
    double *scores, *losses;
    int *ends, *queue;
    double ceiling, inv_width, scale, inv_samples;
    int points, samples, batch, steps, window, recorded, drifting;
};

// What is kept of a run while it runs.
struct Score {
    double first, final, tail, sum_v, sum_inverse_v;
    Real lr_input, lr_output, drift;
    int step, slot;
};

// One hidden unit: what leads into it, what leads out of it, and the gradients of both.
struct Unit {
    Real w1[WIDTH], g1[WIDTH], w2, g2;
};

struct Lane {
    Unit unit[UNITS];
    Real loss;
};

struct Samples {
    const Real *inputs, *targets, *table;
};

#ifdef __CUDACC__
struct alignas(16) Chunk {
    Real number[CHUNK];
};
#endif

// The inputs of one sample; a GPU takes 16 bytes at a time.
DEVICE void load(Real (&x)[STRIDE], const Real *row) {
#ifdef __CUDACC__
#pragma unroll
    for (int k = 0; k < STRIDE; k += CHUNK) {
        const Chunk chunk = *reinterpret_cast<const Chunk *>(row + k);
#pragma unroll
        for (int i = 0; i < CHUNK; ++i) x[k + i] = chunk.number[i];
    }
#else
    for (int k = 0; k < STRIDE; ++k) x[k] = row[k];
#endif
}

// |x|, but LIMIT in place of all that is above.
DEVICE float bounded(float x) {
    const float y = size(x);
    return y > float(LIMIT) ? float(LIMIT) : y;
}

// The same without the pipe of float64, which has enough to do. Of what is above LIMIT the nearest 2^-16
// pass, for which tanh is one as well; nan passes, and infinity does not.
DEVICE double bounded(double x) {
    const unsigned first = unsigned(first_bits(x)) & 0x7fffffffu, most = unsigned(first_bits(LIMIT));
    const bool above = first - most - 1 < 0x7ff00000u - most;
    return from_bits(above ? most : first, above ? last_bits(LIMIT) : last_bits(x));
}

DEVICE Real tanh_(Real x, const Real *table) {
    constexpr Real odd[] = ODD;
    constexpr int last = sizeof odd / sizeof *odd - 1;
    const Real y = bounded(x);
    const Real z = add(y, Real(MAGIC));
    const Real h = add(y, -add(z, -Real(MAGIC)));
    // No index is past the end but that of nan, whose tanh is nan whatever the table says.
    const unsigned index = unsigned(last_bits(z)) & MASK;
    const Real t = table[index < ENTRIES ? index : ENTRIES - 1];
    const Real q = mul(h, h);
    Real o = odd[last];
#pragma unroll
    for (int term = last - 1; term >= 0; --term) o = fma_(o, q, odd[term]);
    const Real tanh_h = fma_(o, mul(h, q), h);
    const Real w = mul(t, tanh_h);
    Real f = add(Real(1), -w);
#pragma unroll
    for (int term = 1; term < TERMS; ++term) f = fma_(-w, f, Real(1));
    return with_sign(fma_(mul(fma_(-t, t, Real(1)), tanh_h), f, t), x);
}

DEVICE Real activate(Real u, const Real *table) {
#if defined(TANH)
    return tanh_(u, table);
#elif defined(RELU)
    return u < 0 ? Real(0) : u;
#else
    return u;
#endif
}

// The slope of the activation, times d.
DEVICE Real slope(Real a, Real d) {
#if defined(TANH)
    return mul(d, fma_(-a, a, Real(1)));
#elif defined(RELU)
    return a > 0 ? d : Real(0);
#else
    return d;
#endif
}

// For every lane the numbers of the lane whose index differs in one bit.
template <int COUNT>
DEVICE void exchange(Real (&theirs)[HERE][COUNT], const Real (&mine)[HERE][COUNT], int bit) {
#pragma unroll
    for (int s = 0; s < COUNT; ++s) {
#ifdef __CUDACC__
        theirs[0][s] = __shfl_xor_sync(0xffffffffu, mine[0][s], bit);
#else
        for (int lane = 0; lane < LANES; ++lane) theirs[lane][s] = mine[lane ^ bit][s];
#endif
    }
}

// A lane's share of the output of one sample: its units, halved until one is left. Units that only fill
// up the power of two count as -0, which changes no number that it is added to.
DEVICE Real share(const Lane &mine, const Real (&a)[UNITS], int lane) {
    Real p[UNITS];
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
        p[u] = mul(a[u], mine.unit[u].w2);
        if (PADDED > WIDTH && lane + u * LANES >= WIDTH) p[u] = -Real(0);
    }
#pragma unroll
    for (int half = UNITS / 2; half; half /= 2)
#pragma unroll
        for (int u = 0; u < half; ++u) p[u] = add(p[u], p[u + half]);
    return p[0];
}

// Pass COUNT samples forward and backward, in the order in which they are named.
template <int COUNT, bool LOSS, bool GRADIENT>
DEVICE void pass(Lane (&lanes)[HERE], const Samples &from, const int (&rows)[COUNT], const Job &job,
                 int first_lane) {
    Real x[COUNT][STRIDE], a[HERE][COUNT][UNITS], p[HERE][COUNT];
#pragma unroll
    for (int s = 0; s < COUNT; ++s) load(x[s], from.inputs + rows[s] * STRIDE);
#pragma unroll
    for (int here = 0; here < HERE; ++here) {
        const Lane &mine = lanes[here];
#pragma unroll
        for (int k = 0; k < WIDTH; ++k)
#pragma unroll
            for (int s = 0; s < COUNT; ++s)
#pragma unroll
                for (int u = 0; u < UNITS; ++u) {
                    const Real w = mine.unit[u].w1[k];
                    a[here][s][u] = k ? fma_(x[s][k], w, a[here][s][u]) : mul(x[s][k], w);
                }
#pragma unroll
        for (int s = 0; s < COUNT; ++s) {
#pragma unroll
            for (int u = 0; u < UNITS; ++u) a[here][s][u] = activate(a[here][s][u], from.table);
            p[here][s] = share(mine, a[here][s], first_lane + here);
        }
    }
    // Both lanes of a pair add the same two numbers, so that in the end all hold the first lane's sum.
#pragma unroll
    for (int bit = LANES / 2; bit; bit /= 2) {
        Real theirs[HERE][COUNT];
        exchange(theirs, p, bit);
#pragma unroll
        for (int here = 0; here < HERE; ++here)
#pragma unroll
            for (int s = 0; s < COUNT; ++s) p[here][s] = add(p[here][s], theirs[here][s]);
    }
#pragma unroll
    for (int here = 0; here < HERE; ++here) {
        Lane &mine = lanes[here];
#pragma unroll
        for (int s = 0; s < COUNT; ++s) {
            const Real r = fma_(p[here][s], Real(job.inv_width), -from.targets[rows[s]]);
            if (LOSS) mine.loss = fma_(r, r, mine.loss);
            if (!GRADIENT) continue;
            const Real e = mul(r, Real(job.scale));
#pragma unroll
            for (int u = 0; u < UNITS; ++u) {
                Unit &unit = mine.unit[u];
                unit.g2 = fma_(e, a[here][s][u], unit.g2);
                const Real d = slope(a[here][s][u], mul(e, unit.w2));
#pragma unroll
                for (int k = 0; k < WIDTH; ++k) unit.g1[k] = fma_(x[s][k], d, unit.g1[k]);
            }
        }
    }
}

// Pass the samples `index[0:count]`, or without an index the first `count`.
template <bool LOSS, bool GRADIENT>
DEVICE void pass_all(Lane (&lanes)[HERE], const Samples &from, const int *index, int count,
                     const Job &job, int first_lane) {
    int i = 0;
#pragma unroll 1
    for (; i + SAMPLES <= count; i += SAMPLES) {
        int rows[SAMPLES];
#pragma unroll
        for (int s = 0; s < SAMPLES; ++s) rows[s] = index ? index[i + s] : i + s;
        pass<SAMPLES, LOSS, GRADIENT>(lanes, from, rows, job, first_lane);
    }
#pragma unroll 1
    for (; SAMPLES > 1 && i < count; ++i) {
        const int rows[1] = {index ? index[i] : i};
        pass<1, LOSS, GRADIENT>(lanes, from, rows, job, first_lane);
    }
}

// The weights and gradients of a lane at the beginning of a run.
DEVICE void begin(Lane &mine, const Job &job, int point, int lane) {
    const Real offset = job.hyper[4 * point + 2];
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
        Unit &unit = mine.unit[u];
        const int j = lane + u * LANES;
        const bool real = PADDED == WIDTH || j < WIDTH;
        unit.w2 = real ? job.w2[j] : Real(0);
        unit.g2 = 0;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            unit.w1[k] = real ? add(job.w1[k * WIDTH + j], offset) : Real(0);
            unit.g1[k] = 0;
        }
    }
}

// The account of a run that begins; the first lane of a group keeps it.
DEVICE void open(Score &score, const Job &job, int point) {
    const Real *hyper = job.hyper + 4 * point;
    score = {0, 0, 0, 0, 0, hyper[0], hyper[1], hyper[3], 0, 0};
}

// Add a step's loss to the account. Returns whether the run goes on.
DEVICE bool account(Score &score, const Job &job, int point, Real loss) {
    const double value = loss;
    const bool finite = size(value) < INF;
    if (score.step == 0) score.first = finite ? value : INF;
    const double limit = job.ceiling == INF ? INF : mul(job.ceiling, score.first);
    if (!finite || !(value <= limit)) return false;
    double v = divide(value, score.first);
    score.final = value;
    if (score.step >= job.steps - job.window) score.tail = add(score.tail, v);
    if (!(v <= V_MOST)) v = V_MOST;
    score.sum_v = add(score.sum_v, v);
    score.sum_inverse_v = add(score.sum_inverse_v, divide(1.0, v));
    if (score.slot < job.recorded && job.record[score.slot] == score.step)
        job.losses[(long long)point * job.recorded + score.slot++] = value;
    return ++score.step < job.steps;
}

// Store what a run came to.
DEVICE void close(const Score &score, const Job &job, int point) {
    double *to = job.scores + 5LL * point;
    to[0] = score.first;
    to[1] = score.final;
    to[2] = score.tail;
    to[3] = score.sum_v;
    to[4] = score.sum_inverse_v;
    job.ends[point] = score.step;
    for (int slot = score.slot; slot < job.recorded; ++slot)
        job.losses[(long long)point * job.recorded + slot] = INF;
}

DEVICE void drift(Lane &mine, Real by) {
#pragma unroll
    for (int u = 0; u < UNITS; ++u)
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) mine.unit[u].w1[k] = add(mine.unit[u].w1[k], by);
}

// Step down the gradient, and clear it.
DEVICE void update(Lane &mine, Real lr_input, Real lr_output) {
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
        Unit &unit = mine.unit[u];
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            unit.w1[k] = fma_(-lr_input, unit.g1[k], unit.w1[k]);
            unit.g1[k] = 0;
        }
        unit.w2 = fma_(-lr_output, unit.g2, unit.w2);
        unit.g2 = 0;
    }
}

// The losses of a step and its gradient, for the lanes of one group.
DEVICE void step(Lane (&lanes)[HERE], const Samples &from, const Job &job, const Score &score,
                 int first_lane) {
#pragma unroll
    for (int here = 0; here < HERE; ++here) {
        if (job.drifting) drift(lanes[here], score.drift);
        lanes[here].loss = 0;
    }
#ifdef MINIBATCH
    pass_all<true, false>(lanes, from, nullptr, job.samples, job, first_lane);
    const int *index = job.batches + (long long)score.step * job.batch;
    pass_all<false, true>(lanes, from, index, job.batch, job, first_lane);
#else
    pass_all<true, true>(lanes, from, nullptr, job.samples, job, first_lane);
#endif
}

#ifdef __CUDACC__

constexpr int GROUPS = THREADS / LANES;

extern "C" __global__ void __launch_bounds__(THREADS, 1) train(const __grid_constant__ Job job) {
    extern __shared__ Chunk memory[];
    __shared__ Score scores[GROUPS];
    Real *table = reinterpret_cast<Real *>(memory);
    Samples from = {job.inputs, job.targets, table};
#ifdef TANH
    for (int i = threadIdx.x; i < ENTRIES; i += THREADS) table[i] = job.table[i];
#endif
#ifdef RESIDENT
#ifdef TANH
    Real *inputs = table + (ENTRIES + CHUNK - 1) / CHUNK * CHUNK;
#else
    Real *inputs = table;
#endif
    Real *targets = inputs + job.samples * STRIDE;
    for (int i = threadIdx.x; i < job.samples * STRIDE; i += THREADS) inputs[i] = job.inputs[i];
    for (int i = threadIdx.x; i < job.samples; i += THREADS) targets[i] = job.targets[i];
    from.inputs = inputs;
    from.targets = targets;
#endif
    __syncthreads();

    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    // The first points go to all processors alike, and there to all warps, before any gets a second.
    constexpr int WARPS = THREADS / 32, IN_WARP = 32 / LANES;
    const int rank = group % IN_WARP * WARPS + group / IN_WARP;
    int point = rank * gridDim.x + blockIdx.x;
    Lane lanes[1];
    Score &score = scores[group];
    // Without a point of its own a group plays the last one again, and nobody looks.
    begin(lanes[0], job, min(point, job.points - 1), lane);
    if (lane == 0) open(score, job, min(point, job.points - 1));
    __syncwarp();

    // Threads of a warp go through a step together, whether or not their group has a point.
    while (__any_sync(0xffffffffu, point < job.points)) {
        step(lanes, from, job, score, lane);
        __syncwarp();
        int next = point;
        if (lane == 0 && point < job.points) {
            const Real loss = mul(lanes[0].loss, Real(job.inv_samples));
            if (!account(score, job, point, loss)) {
                close(score, job, point);
                next = gridDim.x * GROUPS + atomicAdd(job.queue, 1);
            }
        }
        next = __shfl_sync(0xffffffffu, next, 0, LANES);
        if (next == point) {
            update(lanes[0], score.lr_input, score.lr_output);
        } else {
            point = next;
            begin(lanes[0], job, min(point, job.points - 1), lane);
            if (lane == 0) open(score, job, min(point, job.points - 1));
        }
        __syncwarp();
    }
}

#else

#ifdef TANH
extern "C" void tanh_of(Real *x, int count, const Real *table) {
    for (int i = 0; i < count; ++i) x[i] = tanh_(x[i], table);
}
#endif

extern "C" void train(const Job *call) {
    const Job &job = *call;
    const Samples from = {job.inputs, job.targets, job.table};
    static Lane lanes[HERE];
    for (int point; (point = (*job.queue)++) < job.points;) {
        Score score;
        for (int here = 0; here < HERE; ++here) begin(lanes[here], job, point, here);
        open(score, job, point);
        for (;;) {
            step(lanes, from, job, score, 0);
            if (!account(score, job, point, mul(lanes[0].loss, Real(job.inv_samples)))) break;
            for (int here = 0; here < HERE; ++here)
                update(lanes[here], score.lr_input, score.lr_output);
        }
        close(score, job, point);
    }
}

#endif
