// Updates of many tensors by one launch, through a table of pointers. A block takes a chunk of one tensor.

#define CHUNK 16384

// One tensor: its first chunk among all tensors' chunks, its length, the addresses of its numbers (what each is, the kernels say), and two
// factors' bits.
struct Entry {
    i64 first_chunk, len, at[4];
    float a, b;
};

// The entry of this block's chunk, and the chunk's range in it.
__device__ inline Entry entry(const i64 *table, int tensors, i64 &first, i64 &last, int &index) {
    const Entry *entries = reinterpret_cast<const Entry *>(table);
    int low = 0, high = tensors - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (entries[middle].first_chunk <= (i64)blockIdx.x) low = middle;
        else high = middle - 1;
    }
    Entry e = entries[low];
    first = ((i64)blockIdx.x - e.first_chunk) * CHUNK;
    last = min(first + CHUNK, e.len);
    index = low;
    return e;
}

// Of (teacher, student): teacher = keep teacher + take student.
extern "C" __global__ void ema(const i64 *table, int tensors, float keep, float take) {
    i64 first, last;
    int index;
    Entry e = entry(table, tensors, first, last, index);
    float *teacher = reinterpret_cast<float *>(e.at[0]);
    const float *student = reinterpret_cast<const float *>(e.at[1]);
    for (i64 i = first + threadIdx.x; i < last; i += blockDim.x) teacher[i] = teacher[i] * keep + student[i] * take;
}

// Of (parameter, gradient, buffer; lr, decay): d = scale (gradient + decay parameter), buffer = momentum buffer + d,
// parameter -= lr buffer, or with Nesterov lr (d + momentum buffer). Without momentum the buffer is not touched. `adapted` (null for none) has
// each tensor's scale and decay, (tensors, 2); otherwise scale is that of `scales`, (tensors).
extern "C" __global__ void sgd(const i64 *table, const float *scales, const float *adapted, int tensors, float momentum, int nesterov) {
    i64 first, last;
    int index;
    Entry e = entry(table, tensors, first, last, index);
    float *parameter = reinterpret_cast<float *>(e.at[0]);
    const float *gradient = reinterpret_cast<const float *>(e.at[1]);
    float *buffer = reinterpret_cast<float *>(e.at[2]);
    float scale = adapted ? adapted[2 * index] : scales[index], decay = adapted ? adapted[2 * index + 1] : e.b, lr = e.a;
    for (i64 i = first + threadIdx.x; i < last; i += blockDim.x) {
        float p = parameter[i], d = (gradient[i] + decay * p) * scale;
        if (momentum != 0.0f) {
            float m = momentum * buffer[i] + d;
            buffer[i] = m;
            d = nesterov ? d + momentum * m : m;
        }
        parameter[i] = p - lr * d;
    }
}

// Of (parameter, gradient, first, second moment; lr / correction, 1 - lr decay).
extern "C" __global__ void adamw(const i64 *table, int tensors, float beta1, float rest1, float beta2, float rest2, float eps, float root) {
    i64 first, last;
    int index;
    Entry e = entry(table, tensors, first, last, index);
    float *parameter = reinterpret_cast<float *>(e.at[0]);
    const float *gradient = reinterpret_cast<const float *>(e.at[1]);
    float *moment = reinterpret_cast<float *>(e.at[2]), *square = reinterpret_cast<float *>(e.at[3]);
    for (i64 i = first + threadIdx.x; i < last; i += blockDim.x) {
        float g = gradient[i], m = beta1 * moment[i] + rest1 * g, v = beta2 * square[i] + rest2 * (g * g);
        moment[i] = m;
        square[i] = v;
        parameter[i] = parameter[i] * e.b - e.a * (m / (sqrtf(v) * root + eps));
    }
}

// The sum of squares of every chunk of the numbers at address `which`.
extern "C" __global__ void square_sums(const i64 *table, float *parts, int tensors, int which) {
    __shared__ float room[32];
    i64 first, last;
    int index;
    Entry e = entry(table, tensors, first, last, index);
    const float *x = reinterpret_cast<const float *>(e.at[which]);
    float sum = 0.0f;
    for (i64 i = first + threadIdx.x; i < last; i += blockDim.x) sum += x[i] * x[i];
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// Adds every tensor's chunks; a block takes a tensor. `chunks` is that of all tensors.
extern "C" __global__ void square_sums_finish(const i64 *table, const float *parts, float *sums, int tensors, i64 chunks) {
    __shared__ float room[32];
    const Entry *entries = reinterpret_cast<const Entry *>(table);
    i64 first = entries[blockIdx.x].first_chunk, last = (int)blockIdx.x + 1 < tensors ? entries[blockIdx.x + 1].first_chunk : chunks;
    float sum = 0.0f;
    for (i64 i = first + threadIdx.x; i < last; i += blockDim.x) sum += parts[i];
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// The scale and decay of LARS for every tensor, (tensors, 2), of the squares of its parameter's and gradient's norms: with w and g the norms,
// scale = trust w / (g + decay w + eps), at most lr if `clip` (then scale / lr is meant, at most 1); 1 and no decay where decay, w or g is 0.
extern "C" __global__ void lars(const i64 *table, const float *weights, const float *gradients, float *adapted, int tensors, float trust, float eps, int clip) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= tensors) return;
    const Entry *entries = reinterpret_cast<const Entry *>(table);
    float lr = entries[i].a, decay = entries[i].b, w = sqrtf(weights[i]), g = sqrtf(gradients[i]);
    bool on = decay != 0.0f && w != 0.0f && g != 0.0f;
    float ratio = trust * w / (g + w * decay + eps);
    if (clip) {
        ratio = ratio / lr;
        // NaN stays.
        ratio = ratio > 1.0f ? 1.0f : ratio;
    }
    adapted[2 * i] = on ? ratio : 1.0f;
    adapted[2 * i + 1] = on ? decay : 0.0f;
}

// The sum over the threads of a block of THREADS, the same bits in each of them; `room` holds a number for each.
__device__ inline double block_sum_f64(double x, double *room) {
    room[threadIdx.x] = x;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if ((int)threadIdx.x < half) room[threadIdx.x] += room[threadIdx.x + half];
        __syncthreads();
    }
    return room[0];
}

// The sum of squares of every chunk of (gradient), in double: squares of floats are exact in it, and no sum of them overflows.
extern "C" __global__ void clip_squares(const i64 *table, double *parts, int tensors) {
    __shared__ double room[THREADS];
    i64 first, last;
    int index;
    Entry e = entry(table, tensors, first, last, index);
    const float *x = reinterpret_cast<const float *>(e.at[0]);
    double sum = 0.0;
    for (i64 i = first + threadIdx.x; i < last; i += blockDim.x) sum += (double)x[i] * (double)x[i];
    sum = block_sum_f64(sum, room);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// Of (gradient; where its copy begins in `out`): the gradient times most / (norm + 1e-6) where the norm, of all tensors if `together` or else of
// its own, is above `most` (own norms: where the factor is below 1), else the gradient. Every block adds up the sums of `clip_squares` that it
// needs, all in one order; `chunks` is their number.
extern "C" __global__ void clip(const i64 *table, const double *parts, float *out, int tensors, i64 chunks, double most, int together) {
    __shared__ double room[THREADS];
    i64 first, last;
    int index;
    Entry e = entry(table, tensors, first, last, index);
    i64 from = 0, to = chunks;
    if (!together) {
        from = e.first_chunk;
        if (index + 1 < tensors) to = reinterpret_cast<const Entry *>(table)[index + 1].first_chunk;
    }
    double sum = 0.0;
    for (i64 i = from + threadIdx.x; i < to; i += blockDim.x) sum += parts[i];
    double norm = sqrt(block_sum_f64(sum, room)), factor = most / (norm + 1e-6);
    // A norm that is no number clips nothing.
    bool clips = together ? norm > most : factor < 1.0;
    const float *x = reinterpret_cast<const float *>(e.at[0]);
    float *y = out + e.at[1], by = clips ? (float)factor : 1.0f;
    for (i64 i = first + threadIdx.x; i < last; i += blockDim.x) y[i] = x[i] * by;
}
