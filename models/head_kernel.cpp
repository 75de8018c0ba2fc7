// SegFormer's decode head between its matrix products: maps upsampled into one, and what normalises, rectifies and drops
// it, forwards and backwards. See head_kernel.py. All maps are float32 and channels-last.
#include <cstdint>
#include <cstring>
#include <new>

// A map plus bilinearly upsampled smaller ones, in place. After BatchNorm's affine map in evaluation mode it is rectified.
struct Sum {
    int64_t height, width, channels, maps;
    float* total;             // (batch, height, width, channels), added to
    int64_t rectify;          // whether what is negative becomes 0 at last
    float *means, *squares;   // (batch * height, channels): of rows, and sums of squares around these; or null
    struct Map {
        int64_t height, width;
        const float* values;                          // (batch, height, width, channels)
        const int64_t *row, *column;                  // before those of the total
        const float *row_fraction, *column_fraction;  // from there to the next
    } map[8];
};

// Works on rows first, first + 1, ... before last of batch * height.
extern "C" int upsampled_sum(const Sum* sum, int64_t first, int64_t last) {
    const Sum& in = *sum;
    const int64_t channels = in.channels, size = in.width * channels;
    int64_t numbers = 0;
    for (int64_t m = 0; m < in.maps; m++) numbers += in.map[m].width * channels;
    float* memory = new (std::align_val_t(64), std::nothrow) float[numbers];
    if (!memory) return 1;
    for (int64_t r = first; r < last; r++) {
        const int64_t image = r / in.height, y = r % in.height;
        float *total = in.total + r * size, *row = memory;
        for (int64_t m = 0; m < in.maps; m++) {
            const Sum::Map& map = in.map[m];
            const int64_t length = map.width * channels, here = map.row[y], next = here + (here + 1 < map.height);
            const float* top = map.values + (image * map.height + here) * length;
            const float* bottom = map.values + (image * map.height + next) * length;
            const float of_bottom = map.row_fraction[y], of_top = 1.0f - of_bottom;
#pragma omp simd
            for (int64_t i = 0; i < length; i++) row[i] = of_top * top[i] + of_bottom * bottom[i];
            row += length;
        }
        for (int64_t x = 0; x < in.width; x++) {
            float *to = total + x * channels, *of_map = memory;
            for (int64_t m = 0; m < in.maps; m++) {
                const Sum::Map& map = in.map[m];
                const int64_t here = map.column[x], next = here + (here + 1 < map.width);
                const float *left = of_map + here * channels, *right = of_map + next * channels;
                const float of_right = map.column_fraction[x], of_left = 1.0f - of_right;
#pragma omp simd
                for (int64_t c = 0; c < channels; c++) to[c] += of_left * left[c] + of_right * right[c];
                of_map += map.width * channels;
            }
            if (!in.rectify) continue;
#pragma omp simd
            for (int64_t c = 0; c < channels; c++) to[c] = to[c] < 0.0f ? 0.0f : to[c];
        }
        if (!in.means) continue;
        float *means = in.means + r * channels, *squares = in.squares + r * channels;
        memset(means, 0, sizeof(float) * channels);
        memset(squares, 0, sizeof(float) * channels);
        for (int64_t x = 0; x < in.width; x++)
#pragma omp simd
            for (int64_t c = 0; c < channels; c++) means[c] += total[x * channels + c];
        for (int64_t c = 0; c < channels; c++) means[c] /= in.width;
        for (int64_t x = 0; x < in.width; x++)
#pragma omp simd
            for (int64_t c = 0; c < channels; c++) {
                const float difference = total[x * channels + c] - means[c];
                squares[c] += difference * difference;
            }
    }
    operator delete[](memory, std::align_val_t(64));
    return 0;
}

// Rows of a map (rows, channels) that is normalised, (x - mean) * inverse, scaled, rectified and partly dropped.
struct Norm {
    int64_t channels, block;  // rows worked on together
    const float *x, *mean, *inverse, *weight, *bias;
    const int16_t* random;  // (rows, channels), or null where nothing is dropped: of what is kept, it is at least ...
    int64_t least;
    uint8_t* kept;    // (rows, channels): whether a number was positive and not dropped
    float* hidden;    // (rows, channels), what comes out
    float* gradient;  // (rows, channels), of hidden; backwards it becomes that of the scaled numbers
    float* sums;      // (blocks, 2, channels), backwards: of the gradient, and of it times the normalised numbers
};

// Work on blocks first, first + 1, ... before last, of which the very last may end at `rows`.
extern "C" int norm_forward(const Norm* norm, int64_t rows, int64_t first, int64_t last) {
    const Norm& in = *norm;
    const int64_t channels = in.channels;  // which nothing written below can change
    for (int64_t r = first * in.block; r < (last * in.block < rows ? last * in.block : rows); r++) {
        const float* x = in.x + r * channels;
        const int16_t* random = in.random + r * channels;
        const int16_t least = static_cast<int16_t>(in.least);
        float* hidden = in.hidden + r * channels;
        uint8_t* kept = in.kept + r * channels;
        for (int64_t c = 0; c < channels; c++) {
            const float value = (x[c] - in.mean[c]) * in.inverse[c] * in.weight[c] + in.bias[c];
            hidden[c] = value < 0.0f ? 0.0f : value;  // NaN stays, as everywhere below
        }
        if (in.random)
            for (int64_t c = 0; c < channels; c++) hidden[c] = random[c] < least ? 0.0f : hidden[c];
        for (int64_t c = 0; c < channels; c++) kept[c] = !(hidden[c] <= 0.0f);
    }
    return 0;
}

extern "C" int norm_backward(const Norm* norm, int64_t rows, int64_t first, int64_t last) {
    const Norm& in = *norm;
    const int64_t channels = in.channels;  // which nothing written below can change
    for (int64_t block = first; block < last; block++) {
        float *total = in.sums + block * 2 * channels, *dot = total + channels;
        memset(total, 0, sizeof(float) * 2 * channels);
        for (int64_t r = block * in.block; r < ((block + 1) * in.block < rows ? (block + 1) * in.block : rows); r++) {
            const float* x = in.x + r * channels;
            const uint8_t* kept = in.kept + r * channels;
            float *hidden = in.hidden + r * channels, *gradient = in.gradient + r * channels;
#pragma omp simd
            for (int64_t c = 0; c < channels; c++) {
                const float normalised = (x[c] - in.mean[c]) * in.inverse[c];
                const float value = normalised * in.weight[c] + in.bias[c];
                const float g = static_cast<int32_t>(kept[c]) ? gradient[c] : 0.0f;
                hidden[c] = static_cast<int32_t>(kept[c]) ? value : 0.0f;
                gradient[c] = g;
                total[c] += g;
                dot[c] += g * normalised;
            }
        }
    }
    return 0;
}
