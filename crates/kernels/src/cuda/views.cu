// Views of images that lie on the device as bytes: crop and resize with antialias, flip, then the drawn steps, then normalisation.
//
// Every step works on 8-bit levels and rounds as the crate `augment` does on the processor, so that the same draws give the same
// views bit for bit. Products and sums that are rounded one by one there are written as intrinsics here, which no compiler contracts.

typedef unsigned char u8;
typedef unsigned long long u64;

// Words of a view in the table (`views.rs` writes them): where the image's bytes begin (two words), its width, the crop's left, top,
// width and height, whether left and right change places, and the first and last of its steps.
enum { VIEW_WORDS = 12, PLACE_LOW = 0, PLACE_HIGH, IMAGE_WIDTH, LEFT, TOP, WIDTH, HEIGHT, FLIP, FIRST, LAST };
// Words of a step: what it is, then its arguments.
enum { STEP_WORDS = 8 };
enum { BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAYSCALE, BLUR, SOLARIZE, ERASE, DROP, POSTERIZE };

// Threads of a block of `view_weights`, at most.
enum { MOST_THREADS = 256 };

__device__ inline double triangle(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

// Catmull and Rom's, a = -0.5.
__device__ inline double cubic(double x) {
    x = fabs(x);
    if (x < 1.0) return __dadd_rn(__dmul_rn(__dmul_rn(__dadd_rn(__dmul_rn(1.5, x), -2.5), x), x), 1.0);
    if (x < 2.0) return __dmul_rn(__dadd_rn(__dmul_rn(__dadd_rn(__dmul_rn(x - 5.0, x), 8.0), x), -4.0), -0.5);
    return 0.0;
}

// One axis of a crop of `length` pixels that becomes `size`.
struct Axis {
    int length, size, is_cubic;
    double scale, radius, inverse;

    __device__ Axis(int length, int size, int is_cubic) : length(length), size(size), is_cubic(is_cubic) {
        scale = __ddiv_rn((double)length, (double)size);
        double wide = scale > 1.0 ? scale : 1.0;
        radius = __dmul_rn(is_cubic ? 2.0 : 1.0, wide);
        inverse = __ddiv_rn(1.0, wide);
    }
    __device__ double middle(int x) const { return __dmul_rn((double)x + 0.5, scale); }
    __device__ int low(int x) const {
        double first = floor(middle(x) - radius);
        return first > 0.0 ? (int)first : 0;
    }
    __device__ int high(int x) const {
        double last = ceil(middle(x) + radius);
        return last < (double)length ? (int)last : length;
    }
    __device__ double weight(int x, int from) const {
        double away = __dmul_rn((double)from - (middle(x) - 0.5), inverse);
        return is_cubic ? cubic(away) : triangle(away);
    }
    __device__ double sum(int x) const {
        double sum = 0.0;
        for (int from = low(x), end = high(x); from < end; from++) sum = __dadd_rn(sum, weight(x, from));
        return sum;
    }
};

// The weights of every output pixel of both axes of every view as whole numbers of 16 bits, with as many binary places as the largest of
// an axis allows. A block is an axis: across, down, across of the next view, … An axis that keeps its length copies.
// weights: (2 views, size, window); spans: (2 views, size, 2), the first pixel and their number; places: (2 views).
extern "C" __global__ void view_weights(const u32 *views, int size, int is_cubic, int window, int *weights, int *spans, int *places) {
    __shared__ double tops[MOST_THREADS];
    i64 axis_index = blockIdx.x;
    const u32 *view = views + axis_index / 2 * VIEW_WORDS;
    Axis axis((int)view[axis_index % 2 == 0 ? WIDTH : HEIGHT], size, is_cubic);
    weights += axis_index * size * window;
    spans += axis_index * size * 2;
    bool copies = axis.length == size;
    double top = 0.0;
    for (int x = threadIdx.x; x < size && !copies; x += blockDim.x) {
        double sum = axis.sum(x);
        for (int from = axis.low(x), end = axis.high(x); from < end; from++) {
            double share = __ddiv_rn(axis.weight(x, from), sum);
            top = share > top ? share : top;
        }
    }
    tops[threadIdx.x] = top;
    __syncthreads();
    for (int i = 0; i < (int)blockDim.x; i++) top = tops[i] > top ? tops[i] : top;
    int precision = 0;
    for (int bits = 0; bits < 22 && !copies; bits++) {
        precision = bits;
        if (round(top * (double)(1 << (bits + 1))) >= 32768.0) break;
    }
    if (threadIdx.x == 0) places[axis_index] = precision;
    for (int x = threadIdx.x; x < size; x += blockDim.x) {
        int low = copies ? x : axis.low(x);
        int end = copies ? x + 1 : axis.high(x);
        end = end < low + window ? end : low + window;
        double sum = copies ? 1.0 : axis.sum(x);
        spans[2 * x] = low;
        spans[2 * x + 1] = end - low;
        for (int from = low; from < end; from++) {
            double share = copies ? 1.0 : __ddiv_rn(axis.weight(x, from), sum);
            weights[(i64)x * window + from - low] = (int)round(share * (double)(1 << precision));
        }
    }
}

// The weights of one output pixel along one axis.
struct Taps {
    const int *weights;
    int first, count, precision;

    __device__ Taps(const int *weights, const int *spans, const int *places, i64 axis_index, int size, int window, int x)
        : weights(weights + (axis_index * size + x) * window), first(spans[(axis_index * size + x) * 2]),
          count(spans[(axis_index * size + x) * 2 + 1]), precision(places[axis_index]) {}
    __device__ int half() const { return precision > 0 ? 1 << (precision - 1) : 0; }
    __device__ int level(int sum) const {
        sum >>= precision;
        return sum < 0 ? 0 : sum > 255 ? 255 : sum;
    }
};

// One pixel of the resized crop: down first, rounded to levels, then across. `corner` is the crop's first byte, `row` an image's row.
__device__ inline void resampled(const u8 *corner, i64 row, int channels, const Taps &across, const Taps &down, int *pixel) {
    int sums[3] = {across.half(), across.half(), across.half()};
    for (int i = 0; i < across.count; i++) {
        const u8 *at = corner + down.first * row + (i64)(across.first + i) * channels;
        int column[3] = {down.half(), down.half(), down.half()};
        for (int j = 0; j < down.count; j++, at += row)
            for (int c = 0; c < channels; c++) column[c] += at[c] * down.weights[j];
        for (int c = 0; c < channels; c++) sums[c] += down.level(column[c]) * across.weights[i];
    }
    for (int c = 0; c < channels; c++) pixel[c] = across.level(sums[c]);
}

__device__ inline int luma(const int *p) { return (p[0] * 19595 + p[1] * 38470 + p[2] * 7471 + 0x8000) >> 16; }

// from + factor (to - from), cut to a level.
__device__ inline int blend(int from, int to, float factor) {
    float mixed = __fadd_rn((float)from, __fmul_rn(factor, (float)(to - from)));
    mixed = mixed < 0.0f ? 0.0f : mixed > 255.0f ? 255.0f : mixed;
    return (int)mixed;
}

// Hue turned by `shift` 255ths of the circle, through PIL's 8-bit HSV.
__device__ inline void turn_hue(int *p, int shift) {
    int r = p[0], g = p[1], b = p[2];
    int most = r > g ? (r > b ? r : b) : (g > b ? g : b);
    int least = r < g ? (r < b ? r : b) : (g < b ? g : b);
    int chroma = most - least;
    float share = __fdiv_rn((float)(2 * most + least - r - g - b), (float)(chroma > 1 ? chroma : 1));
    float start, sign;
    if (r == most) {
        start = g >= b ? 1.0f : -1.0f;
        sign = g >= b ? -1.0f : 1.0f;
    } else if (g == most) {
        start = r <= b ? 3.0f : 1.0f;
        sign = r <= b ? -1.0f : 1.0f;
    } else {
        start = g <= r ? 5.0f : 3.0f;
        sign = g <= r ? -1.0f : 1.0f;
    }
    float sixth = __fdiv_rn(__fadd_rn(start, __fmul_rn(sign, share)), 6.0f);
    float turn = sixth < 0.0f ? __fadd_rn(sixth, 1.0f) : sixth;
    int h = chroma == 0 ? 0 : (int)__fmul_rn(turn, 255.0f);
    int s = (int)__fdiv_rn((float)(chroma * 255), (float)(most > 1 ? most : 1));
    int angle = ((h + shift) & 0xff) * 6;
    int sector = (angle * 257 + 257) >> 16;
    float f = (float)(angle - 255 * sector);
    float value = (float)most, drop = (float)(most * s);
    const float once = 1.0f / 255.0f, twice = 1.0f / 65025.0f;
    int low = (int)rintf(__fadd_rn(value, -__fmul_rn(drop, once)));
    int falling = (int)rintf(__fadd_rn(value, -__fmul_rn(__fmul_rn(drop, f), twice)));
    int rising = (int)rintf(__fadd_rn(value, -__fmul_rn(__fmul_rn(drop, 255.0f - f), twice)));
    switch (sector) {
        case 1: p[0] = falling, p[1] = most, p[2] = low; break;
        case 2: p[0] = low, p[1] = most, p[2] = rising; break;
        case 3: p[0] = low, p[1] = falling, p[2] = most; break;
        case 4: p[0] = rising, p[1] = low, p[2] = most; break;
        case 5: p[0] = most, p[1] = low, p[2] = falling; break;
        default: p[0] = most, p[1] = rising, p[2] = low; break;
    }
}

// A step that needs one pixel alone; `mean` is contrast's. `normal`: a factor, an offset and the level that stands for nothing, a channel.
__device__ inline void changed(const u32 *step, int mean, const float *normal, int channels, int x, int y, int *p) {
    bool colour = channels == 3;
    float factor = __uint_as_float(step[1]);
    switch (step[0]) {
        case BRIGHTNESS:
            for (int c = 0; c < channels; c++) p[c] = blend(0, p[c], factor);
            break;
        case CONTRAST:
            for (int c = 0; c < channels; c++) p[c] = blend(mean, p[c], factor);
            break;
        case SATURATION:
            if (colour) {
                int gray = luma(p);
                for (int c = 0; c < 3; c++) p[c] = blend(gray, p[c], factor);
            }
            break;
        case HUE:
            if (colour) turn_hue(p, (int)step[1]);
            break;
        case GRAYSCALE:
            if (colour) p[0] = p[1] = p[2] = luma(p);
            break;
        case SOLARIZE:
            for (int c = 0; c < channels; c++) p[c] = p[c] < (int)step[1] ? p[c] : 255 - p[c];
            break;
        case ERASE:
            if ((u32)x >= step[1] && (u32)y >= step[2] && (u32)x < step[3] && (u32)y < step[4])
                for (int c = 0; c < channels; c++) p[c] = (int)normal[3 * c + 2];
            break;
        case DROP:
            p[step[1]] = (int)normal[3 * step[1] + 2];
            break;
        case POSTERIZE:
            for (int c = 0; c < channels; c++) p[c] &= (int)step[1];
            break;
    }
}

// Mirrored at the centres of the first and the last pixel.
__device__ inline int reflected(int i, int length) {
    if (i >= 0 && i < length) return i;
    if (length == 1) return 0;
    int period = 2 * (length - 1);
    i = (i % period + period) % period;
    return i >= length ? period - i : i;
}

// The Gaussian blur of one plane by the whole block; `taps` run from the centre outwards to `reach`. It ends with a barrier.
__device__ inline void blur_plane(u8 *plane, float *rows, int size, const float *taps, int reach) {
    i64 area = (i64)size * size;
    for (i64 i = threadIdx.x; i < area; i += blockDim.x) {
        int x = (int)(i % size);
        const u8 *line = plane + (i - x);
        float sum = __fmul_rn(taps[0], (float)line[x]);
        for (int d = 1; d <= reach; d++) {
            float both = (float)(line[reflected(x - d, size)] + line[reflected(x + d, size)]);
            sum = __fadd_rn(sum, __fmul_rn(taps[d], both));
        }
        rows[i] = sum;
    }
    __syncthreads();
    for (i64 i = threadIdx.x; i < area; i += blockDim.x) {
        int x = (int)(i % size), y = (int)(i / size);
        float sum = __fmul_rn(taps[0], rows[i]);
        for (int d = 1; d <= reach; d++) {
            float both = __fadd_rn(rows[(i64)reflected(y - d, size) * size + x], rows[(i64)reflected(y + d, size) * size + x]);
            sum = __fadd_rn(sum, __fmul_rn(taps[d], both));
        }
        plane[i] = (u8)__float_as_uint(__fadd_rn(sum, 8388608.0f));
    }
    __syncthreads();
}

// A block makes one view after the other. Between steps that look at more than one pixel (contrast's mean, blur) a thread takes its pixels
// through all steps at once.
// bytes: the images; steps: (…, STEP_WORDS); taps: the blurs' weights; levels: (blocks, channels, size, size); rows: (blocks, size, size);
// out: (count, channels, size, size).
template <class T>
__device__ inline void render(const u8 *bytes, const u32 *views, const u32 *steps, const float *taps, const float *normal,
                              const int *weights, const int *spans, const int *places, int window, int channels, int size, i64 count,
                              u8 *levels, float *rows, T *out) {
    __shared__ u64 total;
    i64 area = (i64)size * size;
    levels += blockIdx.x * channels * area;
    rows += blockIdx.x * area;
    for (i64 v = blockIdx.x; v < count; v += gridDim.x) {
        const u32 *view = views + v * VIEW_WORDS;
        i64 row = (i64)view[IMAGE_WIDTH] * channels;
        const u8 *corner = bytes + ((u64)view[PLACE_HIGH] << 32 | view[PLACE_LOW]) + view[TOP] * row + (i64)view[LEFT] * channels;
        int at = (int)view[FIRST], last = (int)view[LAST], mean = 0;
        bool loaded = false, has_mean = false;
        for (;;) {
            int stop = at + (has_mean ? 1 : 0);
            while (stop < last && steps[stop * STEP_WORDS] != BLUR && steps[stop * STEP_WORDS] != CONTRAST) stop++;
            bool ends = stop == last;
            if (threadIdx.x == 0) total = 0;
            __syncthreads();
            u64 sum = 0;
            for (i64 i = threadIdx.x; i < area; i += blockDim.x) {
                int x = (int)(i % size), y = (int)(i / size);
                int p[3] = {0, 0, 0};
                if (loaded) {
                    for (int c = 0; c < channels; c++) p[c] = levels[c * area + i];
                } else {
                    Taps across(weights, spans, places, 2 * v, size, window, view[FLIP] ? size - 1 - x : x);
                    Taps down(weights, spans, places, 2 * v + 1, size, window, y);
                    resampled(corner, row, channels, across, down, p);
                }
                for (int s = at; s < stop; s++) changed(steps + s * STEP_WORDS, mean, normal, channels, x, y, p);
                if (ends) {
                    for (int c = 0; c < channels; c++)
                        narrow(__fadd_rn(__fmul_rn((float)p[c], normal[3 * c]), normal[3 * c + 1]), out[(v * channels + c) * area + i]);
                } else {
                    for (int c = 0; c < channels; c++) levels[c * area + i] = (u8)p[c];
                    sum += channels == 3 ? luma(p) : p[0];
                }
            }
            if (ends) break;
            loaded = true;
            at = stop;
            const u32 *step = steps + stop * STEP_WORDS;
            has_mean = step[0] == CONTRAST;
            if (has_mean) {
                // Whole numbers: the order of additions changes nothing.
                atomicAdd(&total, sum);
                __syncthreads();
                mean = (int)__dadd_rn(__ddiv_rn((double)total, (double)area), 0.5);
            } else {
                __syncthreads();
                for (int c = 0; c < channels; c++) blur_plane(levels + c * area, rows, size, taps + step[1], (int)step[2]);
                at++;
            }
            // `total` and the levels are another's again only now.
            __syncthreads();
        }
        __syncthreads();
    }
}

extern "C" __global__ void render_views_f32(const u8 *bytes, const u32 *views, const u32 *steps, const float *taps, const float *normal,
                                            const int *weights, const int *spans, const int *places, int window, int channels,
                                            int size, i64 count, u8 *levels, float *rows, float *out) {
    render(bytes, views, steps, taps, normal, weights, spans, places, window, channels, size, count, levels, rows, out);
}

extern "C" __global__ void render_views_bf16(const u8 *bytes, const u32 *views, const u32 *steps, const float *taps, const float *normal,
                                             const int *weights, const int *spans, const int *places, int window, int channels,
                                             int size, i64 count, u8 *levels, float *rows, bf16 *out) {
    render(bytes, views, steps, taps, normal, weights, spans, places, window, channels, size, count, levels, rows, out);
}
