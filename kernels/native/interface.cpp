#include "interface.h"
#include <cmath>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

using namespace accel;

namespace {

thread_local std::string reason;

template <typename Work> int guarded(Work work) {
  try {
    work();
    return 0;
  } catch (const std::exception &error) {
    reason = error.what();
    return -1;
  }
}

float number(const void *numbers, int32_t dtype, int64_t index) {
  if (dtype == FLOAT32) return static_cast<const float *>(numbers)[index];
  const uint32_t word = static_cast<uint32_t>(static_cast<const uint16_t *>(numbers)[index]) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

// Rounds the weights of one output to 8 bits, and returns the scale.
float to_bytes(const std::vector<float> &row, std::vector<int8_t> &levels) {
  float most = 0;
  for (const float weight : row) most = std::fmax(most, std::fabs(weight));
  const float scale = std::fmax(most, 1.17549435e-38f) / LEVELS;
  for (size_t input = 0; input < row.size(); input++)
    levels[input] = static_cast<int8_t>(std::nearbyint(row[input] / scale));
  return scale;
}

void lay_bytes(const std::vector<int8_t> &levels, size_t inputs, size_t output, uint8_t *panel) {
  for (size_t input = 0; input < inputs; input++)
    panel[input / 4 * 4 * PANEL + output * 4 + input % 4] = static_cast<uint8_t>(128 + levels[input]);
}

// As nibbles.h says.
void lay_nibbles(const std::vector<int8_t> &levels, const std::vector<int8_t> &factors, size_t output, uint8_t *panel) {
  const auto block = [&](size_t input) { return panel + input / BLOCK * BLOCK_BYTES; };
  for (size_t group = 0; group < factors.size(); group++)
    block(group * GROUP)[group % (BLOCK / GROUP) * PANEL + output] = static_cast<uint8_t>(factors[group]);
  for (size_t input = 0; input < levels.size(); input++) {
    uint8_t &byte = block(input)[BLOCK / GROUP * PANEL + (input % BLOCK / 8 * PANEL + output) * 4 + input % 4];
    const int nibble = levels[input] + 8, shift = input % 8 < 4 ? 0 : 4;
    byte = static_cast<uint8_t>((byte & (0xf0 >> shift)) | nibble << shift);
  }
}

} // namespace

const char *accel_error() { return reason.c_str(); }

const char *accel_instructions() {
  const char *name = nullptr;
  guarded([&] { name = kernels_here().name; });
  return name;
}

int64_t accel_packed_bytes(int32_t packed, int32_t outputs, int32_t inputs) {
  const int64_t panels = up(outputs, PANEL) / PANEL;
  if (packed == INT4) return panels * (up(inputs, BLOCK) / BLOCK) * BLOCK_BYTES;
  if (packed == INT8) return panels * PANEL * up(inputs, 4);
  return panels * PANEL * inputs * (packed == FLOAT32 ? 4 : 2);
}

int accel_pack(const void *numbers, int32_t dtype, int32_t packed, int32_t outputs, int32_t inputs,
               const float *importance, uint8_t *weight, float *scales) {
  return guarded([&] {
    const Kernels &kernels = kernels_here();
    const int64_t panel_bytes = accel_packed_bytes(packed, PANEL, inputs);
    const size_t width = static_cast<size_t>(inputs), padded = static_cast<size_t>(up(inputs, BLOCK));
    std::memset(weight, packed == INT4 ? 0x88 : 128, static_cast<size_t>(accel_packed_bytes(packed, outputs, inputs)));
    std::memset(scales, 0, static_cast<size_t>(up(outputs, PANEL)) * sizeof(float));
    std::vector<float> row(padded), weighs(padded);
    std::vector<int8_t> levels(padded), factors(padded / GROUP, 1);
    for (size_t input = 0; input < width; input++) weighs[input] = importance ? importance[input] : 1;
    for (int64_t output = 0; output < outputs; output++) {
      for (size_t input = 0; input < width; input++)
        row[input] = number(numbers, dtype, output * inputs + static_cast<int64_t>(input));
      uint8_t *panel = weight + output / PANEL * panel_bytes;
      const size_t place = static_cast<size_t>(output % PANEL);
      if (packed == INT4) {
        scales[output] =
            kernels.nibbles(row.data(), weighs.data(), static_cast<int>(padded), levels.data(), factors.data());
        lay_nibbles(levels, factors, place, panel);
      } else {
        scales[output] = to_bytes(row, levels);
        lay_bytes(levels, width, place, panel);
      }
    }
  });
}

int accel_lay_out(const void *numbers, int32_t dtype, int32_t outputs, int32_t inputs, void *weight) {
  return guarded([&] {
    const auto lay = [&](const auto *from, auto *to) {
      const int64_t beside = dtype == BFLOAT16_PAIRS ? 2 : 1; // inputs
      std::memset(to, 0, static_cast<size_t>(accel_packed_bytes(dtype, outputs, inputs)));
      for (int64_t output = 0; output < outputs; output++)
        for (int64_t input = 0; input < inputs; input++) {
          const int64_t place = (output / PANEL * inputs + input / beside * beside) * PANEL;
          to[place + output % PANEL * beside + input % beside] = from[output * inputs + input];
        }
    };
    if (dtype == FLOAT32)
      lay(static_cast<const float *>(numbers), static_cast<float *>(weight));
    else
      lay(static_cast<const uint16_t *>(numbers), static_cast<uint16_t *>(weight));
  });
}

Parts *accel_create_parts(int32_t threads) {
  Parts *parts = nullptr;
  guarded([&] { parts = new Parts(threads); });
  return parts;
}

int accel_linear(Parts *parts, const Linear *layer, const float *in, int64_t tokens, float *out) {
  return guarded([&] { parts->linear(*layer, in, tokens, out); });
}

int accel_attend(Parts *parts, const Shape *shape, const Layer *layer, const Cache *cache, int32_t count,
                 const Lane *lanes, int64_t tokens, float *qkv, float *out) {
  return guarded([&] { parts->attend(*shape, *layer, *cache, {lanes, lanes + count}, tokens, qkv, out); });
}

void accel_destroy_parts(Parts *parts) { delete parts; }

Model *accel_create(const Shape *shape, int32_t threads) {
  Model *model = nullptr;
  guarded([&] { model = new Model(*shape, threads); });
  return model;
}

int accel_set_layer(Model *model, int32_t index, const Layer *layer) {
  return guarded([&] { model->set_layer(index, *layer); });
}

int accel_set_ends(Model *model, const Ends *ends) {
  return guarded([&] { model->set_ends(*ends); });
}

int accel_step(Model *model, int32_t count, const int32_t *tokens, const int32_t *rows, const int32_t *columns,
               int32_t wanted_count, const int32_t *wanted, float *logits) {
  return guarded([&] { model->step(count, tokens, rows, columns, wanted_count, wanted, logits); });
}

int accel_copy_row(Model *model, int32_t source, int32_t target, int32_t length) {
  return guarded([&] { model->copy_row(source, target, length); });
}

void accel_destroy(Model *model) { delete model; }
