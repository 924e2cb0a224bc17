import torch

from lit_consistency.model import IGNORE, token_nll


def by_hand(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    rows = []
    for logits_TV, targets_T in zip(logits, targets, strict=True):
        row = [
            -torch.log(torch.exp(x) / torch.exp(x).sum())[t] if t != IGNORE else x.sum() * 0
            for x, t in zip(logits_TV, targets_T, strict=True)
        ]
        rows.append(torch.stack(row))
    return torch.stack(rows)


def sample(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 11, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(0, 11, (2, 5), generator=generator)
    targets[0, 1] = targets[1, 4] = IGNORE
    return logits.requires_grad_(), targets


def test_nll_and_gradient_equal_the_softmax_by_hand() -> None:
    logits, targets = sample()
    nll = token_nll(logits, targets)
    torch.testing.assert_close(nll, by_hand(logits, targets), rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(nll.sum(), logits)
    one_hot = torch.nn.functional.one_hot(targets.clamp(min=0), 11)
    expected = (logits.softmax(-1) - one_hot) * (targets != IGNORE)[..., None]
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_ignored_targets_cost_nothing() -> None:
    logits, targets = sample()
    nll = token_nll(logits, targets)
    assert nll.shape == targets.shape
    assert (nll[targets == IGNORE] == 0).all()
    assert (nll[targets != IGNORE] > 0).all()


def test_all_masked_is_zero_with_zero_gradients() -> None:
    logits, targets = sample(torch.float32)
    nll = token_nll(logits, torch.full_like(targets, IGNORE))
    nll.sum().backward()
    assert torch.equal(nll, torch.zeros(2, 5))
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_half_precision_is_summed_in_float32() -> None:
    logits, targets = sample(torch.bfloat16)
    nll = token_nll(logits, targets)
    assert nll.dtype == torch.float32
    assert torch.equal(nll, token_nll(logits.float(), targets))
    assert token_nll(logits.double(), targets).dtype == torch.float64


def test_improbable_targets_stay_finite() -> None:
    logits = torch.tensor([[[0.0, 200.0]]])
    assert token_nll(logits, torch.tensor([[0]])).item() == 200.0
