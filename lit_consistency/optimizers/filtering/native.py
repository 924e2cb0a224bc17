"""The exact threshold of a block on a CPU, in one pass over memory: C++ that the compiler of the other passes builds.

The momentum moves, and of its new scores are counted those below a bracket and kept those inside, while they are in
the cache; only these, a few in a hundred, are put in order. The bracket is of a sample (Floyd and Rivest 1975,
Communications of the ACM 18(3), algorithm 489), and where it misses the threshold, all scores are put in order. Written
as torch's operations the same takes twice as long: a list of the scores inside costs as much as the pass.

Scores are compared as the integers of their bits, which are in the order of floats that are at least 0, NaN after
infinity. Threads take ranges of the block, and what is found does not depend on their number.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lit_consistency.optimizers.filtering.threshold import EVERYWHERE, Threshold

STATES = {torch.float32: ("float", "int32_t"), torch.float64: ("double", "int64_t")}
GRADS = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16"}
ARGUMENTS = ["const void*", "void*", "const void*", "void*", "int64_t*", *["int64_t"] * 5]

SOURCE = r"""
// without this, flags of torch's leave loops as they are
#pragma GCC optimize("tree-loop-vectorize")
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <vector>

namespace {
struct bfloat16 { uint16_t bits; };
using State = STATE;
using Word = WORD;  // of the length of a state
using Grad = GRAD;
constexpr bool moves = MOVES;  // whether the momentum takes the gradient in
constexpr int64_t chunk = 512;  // scores that are looked at before those inside are kept
constexpr int64_t range = 1 << 16;  // fewer are not worth a thread
constexpr double deviations = 3;  // of the threshold's rank in a sample, to either side: one sample in 370 misses it

inline float value(float x) { return x; }
inline double value(double x) { return x; }
inline float value(bfloat16 x) {
  uint32_t word = uint32_t(x.bits) << 16;
  float number;
  std::memcpy(&number, &word, sizeof number);
  return number;
}

inline State moved(const Grad* grad, State mean, int64_t i, State rate) {
  return moves ? mean + (State(value(grad[i])) - mean) * rate : mean;
}

inline Word score(State mean) {
  mean = std::fabs(mean);
  Word word;
  std::memcpy(&word, &mean, sizeof word);
  return word;
}

struct Found {
  std::vector<Word> inside;
  int64_t below = 0;
};

void pass(const Grad* grad, State* mean, int64_t begin, int64_t end, State rate, Word low, Word high, Found& found) {
  std::vector<Word> kept(4 * chunk);
  int64_t n_kept = 0;
  for (int64_t start = begin; start < end; start += chunk) {
    const int64_t length = std::min(chunk, end - start);
    const Grad* g = moves ? grad + start : nullptr;
    State* m = mean + start;
    Word scores[chunk];
    uint8_t inside[chunk] = {};
    Word less = 0;
    for (int64_t i = 0; i < length; i++) {
      const State new_mean = moved(g, m[i], i, rate);
      if (moves) m[i] = new_mean;
      scores[i] = score(new_mean);
      less += scores[i] < low;
      inside[i] = (scores[i] >= low) & (scores[i] <= high);
    }
    found.below += less;
    if (n_kept + chunk > int64_t(kept.size())) kept.resize(2 * kept.size());
    // without branches, of which a processor would guess many wrong: first the eights that hold any, then these
    int64_t eights[chunk / 8], n_eights = 0;
    for (int64_t i = 0; i < chunk; i += 8) {
      uint64_t eight;
      std::memcpy(&eight, inside + i, sizeof eight);
      eights[n_eights] = i;
      n_eights += eight != 0;
    }
    for (int64_t e = 0; e < n_eights; e++)
      for (int64_t i = eights[e]; i < eights[e] + 8; i++) {
        kept[n_kept] = scores[i];
        n_kept += inside[i];
      }
  }
  kept.resize(n_kept);
  found.inside = std::move(kept);
}
}  // namespace

extern "C" void kernel(const void* gradient, void* momentum, const void* rate_of_mean, void* kth, int64_t* cut,
                       int64_t n, int64_t k, int64_t smallest, int64_t offset, int64_t threads) {
  const Grad* grad = static_cast<const Grad*>(gradient);
  State* mean = static_cast<State*>(momentum);
  const State rate = *static_cast<const State*>(rate_of_mean);

  // a sample of n^(2/3) / 2: as long to read as it is to keep what a bracket from it holds; a stride that divides the
  // length of a matrix's rows would see a few of its columns only
  int64_t stride = std::max<int64_t>(1, std::llround(2 * std::cbrt(double(n))));
  while (stride % 2 == 0 || stride % 3 == 0 || stride % 5 == 0 || stride % 7 == 0) {
    if (stride == 1) break;
    stride++;
  }
  std::vector<Word> sample;
  for (int64_t i = std::min(stride / 2, n - 1); i < n; i += stride)
    sample.push_back(score(moved(grad, mean[i], i, rate)));
  const int64_t sampled = sample.size();
  const double share = double(smallest ? k : n - k) / n;
  const double spread = deviations * std::sqrt(sampled * share * (1 - share)) + deviations;
  const int64_t first = int64_t(std::floor(share * sampled - spread));
  const int64_t last = int64_t(std::ceil(share * sampled + spread));
  Word low = 0, high = score(std::numeric_limits<State>::infinity());
  if (first >= 0) {
    std::nth_element(sample.begin(), sample.begin() + first, sample.end());
    low = sample[first];
  }
  if (last < sampled) {
    std::nth_element(sample.begin() + std::max<int64_t>(first, 0), sample.begin() + last, sample.end());
    high = std::min(high, sample[last]);  // a NaN is no bound
  }

  const int64_t ranges = std::max<int64_t>(1, std::min(threads, n / range));
  const int64_t length = (n / ranges + chunk) / chunk * chunk;
  std::vector<Found> found(ranges);
#pragma omp parallel for num_threads(ranges)
  for (int64_t i = 0; i < ranges; i++)
    pass(grad, mean, std::min(n, i * length), std::min(n, (i + 1) * length), rate, low, high, found[i]);
  std::vector<Word> inside = std::move(found[0].inside);
  int64_t below = found[0].below;
  for (int64_t i = 1; i < ranges; i++) {
    inside.insert(inside.end(), found[i].inside.begin(), found[i].inside.end());
    below += found[i].below;
  }

  int64_t rank = (smallest ? k - 1 : n - k) - below;
  if (rank < 0 || rank >= int64_t(inside.size())) {
    inside.resize(n);
    for (int64_t i = 0; i < n; i++) inside[i] = score(mean[i]);
    rank += below;
    below = 0;
  }
  std::nth_element(inside.begin(), inside.begin() + rank, inside.end());
  const Word threshold = inside[rank];
  std::memcpy(kth, &threshold, sizeof threshold);
  int64_t ties = 0;
  for (const Word one : inside) {
    below += one < threshold;
    ties += one == threshold;
  }
  // of equal scores the first are taken, for the smallest the last
  const int64_t missing = k - (smallest ? below : n - below - ties);
  *cut = smallest ? 0 : EVERYWHERE;
  if (missing == ties) return;
  int64_t before = smallest ? ties - missing : missing;  // ties that lie before the cut
  int64_t place = 0;
  for (; before > 0; place++) before -= score(mean[place]) == threshold;
  if (smallest)
    while (score(mean[place]) != threshold) place++;
  *cut = offset + place;
}
"""


@cache
def exact_selection(state: torch.dtype, grad: torch.dtype | None) -> Callable[..., Threshold]:
    """The program for means of a dtype, and gradients of a dtype or none.

    Returns:
        A function of the gradient (coordinates,), or None, which moves the momentum (coordinates,) if there is one; of
        the momentum, or of scores that are only read; of the step's coefficients; of K, whether the smallest are
        chosen, and the index of the first coordinate in its parameter. It returns the threshold, of shape ().

    Raises:
        Exception: of the compiler.
    """
    # slow to import, and of no use where nothing is compiled
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    scalar, word = STATES[state]
    names = {"STATE": scalar, "WORD": word, "EVERYWHERE": str(EVERYWHERE)}
    names |= {"GRAD": "float", "MOVES": "false"} if grad is None else {"GRAD": GRADS[grad], "MOVES": "true"}
    head = "".join(f"#define {name} {text}\n" for name, text in names.items())
    kernel = CppPythonBindingsCodeCache.load_pybinding(ARGUMENTS, head + SOURCE)

    def select(
        gradient: Tensor | None, mean: Tensor, coefficients: Tensor, k: int, smallest: bool, offset: int
    ) -> Threshold:
        kth, cut = torch.empty((), dtype=state), torch.empty((), dtype=torch.int64)
        numbers = (len(mean), k, smallest, offset, torch.get_num_threads())
        kernel(mean if gradient is None else gradient, mean, coefficients, kth, cut, *numbers)
        return Threshold(kth, kth, cut)

    return select
