// Depthwise 3 x 3 convolution and GELU of a Mix-FFN, forwards and backwards, on channels-last maps. See mix_ffn.py.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

#include "exponential.h"

// All maps are (batch, height, width, channels), and channels are a multiple of LANES.
struct Maps {
    int64_t batch, height, width, channels;
    float* hidden;             // convolved once hidden_bias is added; overwritten, by the result or by its own gradient
    const float* hidden_bias;  // (channels)
    const float* weight;       // (9, channels)
    const float* bias;         // (channels)
    float* gradient;             // of the result, which overwrites it; or null, forwards
    float* parameter_gradients;  // (batch, 11, channels), of weight, bias and hidden_bias, or null
};

namespace {

constexpr int64_t LANES = 8, STRIP = 32;  // channels in a register, and channels worked on together
constexpr int TAPS = 9, SUMS = TAPS + 2;
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// A strip of channels of three rows: what is above, at and below a row, in turn, with a pixel of zeros at either end.
struct Rows {
    float* memory;
    int64_t length;
    float* at(int64_t y) const { return memory + (y + 3) % 3 * length; }
    float* inside(int64_t y) const { return at(y) + STRIP; }
};

inline Lanes& lanes(float* numbers) { return *reinterpret_cast<Lanes*>(numbers); }

void convolve(const Rows& rows, int64_t y, const float* weight, const float* bias, int64_t width, float* result) {
    float *above = rows.at(y - 1), *here = rows.at(y), *below = rows.at(y + 1);
    for (int64_t c = 0; c < STRIP; c += LANES) {
        Lanes w[TAPS], b = lanes(const_cast<float*>(bias) + c);
        for (int k = 0; k < TAPS; k++) w[k] = lanes(const_cast<float*>(weight) + k * STRIP + c);
        for (int64_t i = c; i < width * STRIP; i += STRIP) {
            Lanes sum = b;
            for (int k = 0; k < 3; k++) sum += w[k] * lanes(above + i + k * STRIP);
            for (int k = 0; k < 3; k++) sum += w[3 + k] * lanes(here + i + k * STRIP);
            for (int k = 0; k < 3; k++) sum += w[6 + k] * lanes(below + i + k * STRIP);
            lanes(result + i) = sum;
        }
    }
}

// Adds, tap by tap, the sum over a row of its gradient (width, STRIP) times what the tap is multiplied by.
void add_weight_gradient(const Rows& rows, int64_t y, float* gradient, int64_t width, float* sums) {
    float *above = rows.at(y - 1), *here = rows.at(y), *below = rows.at(y + 1);
    for (int64_t c = 0; c < STRIP; c += LANES) {
        Lanes sum[TAPS] = {};
        for (int64_t i = c; i < width * STRIP; i += STRIP) {
            const Lanes g = lanes(gradient + i);
            for (int k = 0; k < 3; k++) sum[k] += g * lanes(above + i + k * STRIP);
            for (int k = 0; k < 3; k++) sum[3 + k] += g * lanes(here + i + k * STRIP);
            for (int k = 0; k < 3; k++) sum[6 + k] += g * lanes(below + i + k * STRIP);
        }
        for (int k = 0; k < TAPS; k++) lanes(sums + k * STRIP + c) += sum[k];
    }
}

void add_sum(float* row, int64_t width, float* sums) {
    for (int64_t c = 0; c < STRIP; c += LANES) {
        Lanes sum = {};
        for (int64_t i = c; i < width * STRIP; i += STRIP) sum += lanes(row + i);
        lanes(sums + c) += sum;
    }
}

// The probability that a standard normal variable is below x, and its density there. The tail is exp(-x^2 / 2) times a
// polynomial of 1 / (1 + 0.3 |x|), fitted to a relative error of 1.5e-7.
struct Normal {
    float below, density;
};

inline Normal normal(float x) {
    const float z = x < 0.0f ? -x : x, e = exponential(-0.5f * z * z), t = 1.0f / (1.0f + 0.3f * z);
    float p = 0.03568089354f;
    p = p * t - 0.1572285153f;
    p = p * t + 0.2063971969f;
    p = p * t - 0.05372371503f;
    p = p * t + 0.1285827385f;
    p = p * t + 0.09990712501f;
    p = p * t + 0.1207549707f;
    p = p * t + 0.1196292331f;
    const float tail = p * t * e;
    return {x < 0.0f ? tail : 1.0f - tail, 0.3989422804f * e};
}

// A strip of an image's channels, in memory for `row` and two `Rows`, zeros all of it.
void work(const Maps& maps, int64_t image, int64_t first, float* memory) {
    const int64_t height = maps.height, width = maps.width, count = std::min(STRIP, maps.channels - first);
    const int64_t size = width * STRIP, length = size + 2 * STRIP;
    const auto offset = [&](int64_t y, int64_t x) {
        return ((image * height + y) * width + x) * maps.channels + first;
    };
    float hidden_bias[STRIP] = {}, bias[STRIP] = {}, zeros[STRIP] = {}, sums[SUMS * STRIP] = {};
    float weight[TAPS * STRIP] = {}, flipped[TAPS * STRIP] = {};
    for (int64_t c = 0; c < count; c++) {
        hidden_bias[c] = maps.hidden_bias[first + c];
        bias[c] = maps.bias[first + c];
        for (int k = 0; k < TAPS; k++)
            weight[k * STRIP + c] = flipped[(TAPS - 1 - k) * STRIP + c] = maps.weight[k * maps.channels + first + c];
    }
    const Rows hidden{memory, length}, gradient{memory + 3 * length, length};
    float* row = memory + 6 * length;
    const auto load = [&](int64_t y) {
        float* to = hidden.inside(y);
        if (y == height) memset(to, 0, sizeof(float) * size);
        for (int64_t x = 0; x < width && y < height; x++)
#pragma omp simd
            for (int64_t c = 0; c < count; c++) to[x * STRIP + c] = maps.hidden[offset(y, x) + c] + hidden_bias[c];
    };
    const auto store = [&](float* map, int64_t y) {
        for (int64_t x = 0; x < width; x++) memcpy(map + offset(y, x), row + x * STRIP, sizeof(float) * count);
    };

    load(0);
    for (int64_t y = 0; y < height; y++) {
        load(y + 1);
        convolve(hidden, y, weight, bias, width, row);
        if (!maps.gradient) {
#pragma omp simd
            for (int64_t i = 0; i < size; i++) row[i] *= normal(row[i]).below;
            store(maps.hidden, y);
            continue;
        }
        float* to = gradient.inside(y);
        for (int64_t x = 0; x < width; x++)
            memcpy(to + x * STRIP, maps.gradient + offset(y, x), sizeof(float) * count);
#pragma omp simd
        for (int64_t i = 0; i < size; i++) {
            const Normal n = normal(row[i]);
            to[i] *= n.below + row[i] * n.density;
            row[i] *= n.below;
        }
        store(maps.gradient, y);
        add_weight_gradient(hidden, y, to, width, sums);
        add_sum(to, width, sums + TAPS * STRIP);
        for (int64_t done = y - 1; done < (y + 1 < height ? y : height); done++) {
            if (done < 0) continue;
            if (done + 1 == height) memset(gradient.inside(height), 0, sizeof(float) * size);
            convolve(gradient, done, flipped, zeros, width, row);
            store(maps.hidden, done);
            add_sum(row, width, sums + (TAPS + 1) * STRIP);
        }
    }
    if (!maps.gradient) return;
    for (int k = 0; k < SUMS; k++)
        memcpy(
            maps.parameter_gradients + (image * SUMS + k) * maps.channels + first, sums + k * STRIP,
            sizeof(float) * count
        );
}

}  // namespace

// Works on strips first, first + 1, ... before last of batch * ceil(channels / STRIP), which do not touch each other.
extern "C" int mix_ffn_kernel(const Maps* maps, int64_t first, int64_t last) {
    const int64_t strips = (maps->channels + STRIP - 1) / STRIP, numbers = (7 * maps->width + 12) * STRIP;
    float* memory = new (std::align_val_t(64), std::nothrow) float[numbers];
    if (!memory) return 1;
    for (int64_t strip = first; strip < last; strip++) {
        memset(memory, 0, sizeof(float) * numbers);
        work(*maps, strip / strips, strip % strips * STRIP, memory);
    }
    operator delete[](memory, std::align_val_t(64));
    return 0;
}

extern "C" int64_t mix_ffn_strip() { return STRIP; }
