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

int64_t up(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }

float number(const void *numbers, int32_t dtype, int64_t index) {
  if (dtype == FLOAT32) return static_cast<const float *>(numbers)[index];
  const uint32_t word = static_cast<uint32_t>(static_cast<const uint16_t *>(numbers)[index]) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

} // namespace

const char *accel_error() { return reason.c_str(); }

const char *accel_instructions() {
  const char *name = nullptr;
  guarded([&] { name = kernels_here().name; });
  return name;
}

int64_t accel_packed_bytes(int32_t outputs, int32_t inputs) { return up(outputs, PANEL) * up(inputs, 4); }

int accel_pack(const void *numbers, int32_t dtype, int32_t outputs, int32_t inputs, uint8_t *weight, float *scales) {
  return guarded([&] {
    const int64_t quads = up(inputs, 4) / 4;
    std::memset(weight, 128, static_cast<size_t>(accel_packed_bytes(outputs, inputs)));
    std::memset(scales, 0, static_cast<size_t>(up(outputs, PANEL)) * sizeof(float));
    std::vector<float> row(static_cast<size_t>(inputs));
    for (int64_t output = 0; output < outputs; output++) {
      float most = 0;
      for (int64_t input = 0; input < inputs; input++) {
        row[static_cast<size_t>(input)] = number(numbers, dtype, output * inputs + input);
        most = std::fmax(most, std::fabs(row[static_cast<size_t>(input)]));
      }
      const float scale = scales[output] = std::fmax(most, 1.17549435e-38f) / LEVELS;
      uint8_t *panel = weight + output / PANEL * quads * 4 * PANEL + output % PANEL * 4;
      for (int64_t input = 0; input < inputs; input++) {
        const float level = std::nearbyint(row[static_cast<size_t>(input)] / scale);
        panel[input / 4 * 4 * PANEL + input % 4] = static_cast<uint8_t>(128 + static_cast<int>(level));
      }
    }
  });
}

int accel_linear(const Linear *layer, const float *in, int64_t tokens, float *out) {
  return guarded([&] {
    const Kernels &kernels = kernels_here();
    const int64_t stride = up(layer->inputs, 64);
    std::vector<int8_t> levels(static_cast<size_t>(2 * tokens * stride));
    std::vector<float> scales(static_cast<size_t>(2 * tokens)), padded(static_cast<size_t>(stride));
    std::vector<int32_t> sums(static_cast<size_t>(2 * tokens));
    std::vector<uint8_t> rest(static_cast<size_t>(tokens));
    const Levels held{levels.data(), scales.data(), sums.data(), rest.data(), stride, tokens};
    for (int64_t token = 0; token < tokens; token++)
      kernels.quantise(in + token * layer->inputs, layer->inputs, held, token);
    kernels.linear(*layer, held, tokens, 0, static_cast<int>(up(layer->outputs, PANEL) / PANEL), out, layer->outputs,
                   false, 1);
  });
}

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
