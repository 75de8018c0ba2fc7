// Bilinear interpolation, argmax, softmax, cross-entropy and its gradient of upsampled logits in one pass: the logits of
// a pixel lie in the first-level cache from the first of these to the last. See tile_kernel.py.
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>

#include "exponential.h"

// One image. Low-resolution logits and their gradient have the classes innermost.
struct Image {
    int64_t height, width, classes;  // of the logits
    int64_t columns;                 // of the upsampled image
    const float* logits;             // (height, width, classes)
    const int64_t* first_row;        // (height + 1): first upsampled row below low-resolution row k, and the end
    const float* row_fraction;       // of each upsampled row, from its low-resolution row to the next
    const int32_t* column;           // low-resolution column of each upsampled one
    const float* column_fraction;
    const int64_t* target;       // (rows, columns), a class everywhere
    const bool* valid;           // (rows, columns): elsewhere there is no loss
    const float* label_weight;   // (rows, columns): what -log p of the target is multiplied by
    const float* class_weight;   // (classes): what -log p of every class is multiplied by besides, or null
    float class_weight_sum;
    float* loss;                 // (rows, columns), or null
    float* gradient;             // (height, width, classes), added to, or null
    int32_t* prediction;         // (rows, columns), or null
};

// A pixel's logits, and the highest of them. Not inlined, so that they are rounded alike with loss and without.
__attribute__((noinline)) static float pixel_logits(
    const float* left, const float* right, float fraction, int64_t classes, float* logits
) {
    float of_left = 1.0f - fraction, highest = -INFINITY;
#pragma omp simd reduction(max : highest)
    for (int64_t c = 0; c < classes; c++) {
        float value = of_left * left[c] + fraction * right[c];
        logits[c] = value;
        highest = value > highest ? value : highest;
    }
    return highest;
}

static int32_t first_equal(const float* values, float wanted, int64_t count) {
    int32_t index = static_cast<int32_t>(count);
#pragma omp simd reduction(min : index)
    for (int32_t c = 0; c < static_cast<int32_t>(count); c++) {
        int32_t here = values[c] == wanted ? c : static_cast<int32_t>(count);
        index = here < index ? here : index;
    }
    return index;
}

// What the upsampled rows below low-resolution rows parity + 2 * first, ... before parity + 2 * last have to say.
// Low-resolution row k gets a gradient from the rows below k and below k - 1; so those below even k can be worked on
// together.
extern "C" int tile_kernel(const Image* image, int64_t parity, int64_t first, int64_t last) {
    const Image& in = *image;
    // Here classes are a multiple of what is worked on at once; those that there are not have the lowest logits.
    const int64_t classes = in.classes, stride = in.width * classes, room = (classes + 7) / 8 * 8;
    const int64_t padded = (in.width + 1) * room;
    float* memory = new (std::align_val_t(64), std::nothrow) float[2 * padded + room];
    if (!memory) return 1;
    float *row = memory, *row_gradient = row + padded, *values = row_gradient + padded;
    for (int64_t i = 0; i < padded; i++) row[i] = -FLT_MAX;
    for (int64_t k = parity + 2 * first; k < parity + 2 * last; k += 2) {
        const int64_t next = k + 1 < in.height ? k + 1 : k;
        const float *top = in.logits + k * stride, *bottom = in.logits + next * stride;
        for (int64_t y = in.first_row[k]; y < in.first_row[k + 1]; y++) {
            const float of_bottom = in.row_fraction[y], of_top = 1.0f - of_bottom;
            // The last column comes once more, so that every column has one to its right.
            for (int64_t x = 0; x <= in.width; x++) {
                const int64_t from = (x < in.width ? x : in.width - 1) * classes;
#pragma omp simd
                for (int64_t c = 0; c < classes; c++)
                    row[x * room + c] = of_top * top[from + c] + of_bottom * bottom[from + c];
            }
            if (in.gradient) memset(row_gradient, 0, sizeof(float) * padded);
            for (int64_t x = 0; x < in.columns; x++) {
                const int64_t pixel = y * in.columns + x, left = in.column[x] * room, right = left + room;
                const bool has_loss = in.loss && in.valid[pixel];
                if (in.loss) in.loss[pixel] = 0.0f;
                if (!has_loss && !in.prediction) continue;
                const float of_right = in.column_fraction[x], of_left = 1.0f - of_right;
                const float highest = pixel_logits(row + left, row + right, of_right, room, values);
                if (in.prediction) in.prediction[pixel] = first_equal(values, highest, room);
                if (!has_loss) continue;

                const int64_t target = in.target[pixel];
                const float label_weight = in.label_weight[pixel], weight = label_weight + in.class_weight_sum;
                float loss = -label_weight * values[target], sum = 0.0f;
                if (in.class_weight) {
                    float weighted = 0.0f;
#pragma omp simd reduction(+ : weighted)
                    for (int64_t c = 0; c < classes; c++) weighted += in.class_weight[c] * values[c];
                    loss -= weighted;
                }
#pragma omp simd reduction(+ : sum)
                for (int64_t c = 0; c < room; c++) {
                    float value = exponential(values[c] - highest);
                    values[c] = value;
                    sum += value;
                }
                in.loss[pixel] = loss + weight * (highest + logf(sum));
                if (!in.gradient) continue;

                float* to_left = row_gradient + left;
                float* to_right = row_gradient + right;
                float scale = weight / sum;
                if (in.class_weight) {
#pragma omp simd
                    for (int64_t c = 0; c < classes; c++) values[c] = scale * values[c] - in.class_weight[c];
                    scale = 1.0f;
                }
                const float scaled_left = of_left * scale, scaled_right = of_right * scale;
#pragma omp simd
                for (int64_t c = 0; c < room; c++) {
                    to_left[c] += scaled_left * values[c];
                    to_right[c] += scaled_right * values[c];
                }
                to_left[target] -= of_left * label_weight;
                to_right[target] -= of_right * label_weight;
            }
            if (!in.gradient) continue;
            float *to_top = in.gradient + k * stride, *to_bottom = in.gradient + next * stride;  // may be the same
            for (int64_t x = 0; x <= in.width; x++) {
                const int64_t to = (x < in.width ? x : in.width - 1) * classes;
#pragma omp simd
                for (int64_t c = 0; c < classes; c++) to_top[to + c] += of_top * row_gradient[x * room + c];
#pragma omp simd
                for (int64_t c = 0; c < classes; c++) to_bottom[to + c] += of_bottom * row_gradient[x * room + c];
            }
        }
    }
    operator delete[](memory, std::align_val_t(64));
    return 0;
}
