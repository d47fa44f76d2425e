"""What tests of macros in float64 share: layers, inputs, and how a module is held to a loop and to its own steps."""

import bodyplan as bp
import torch
from example_macros import shaken, space

ATTENTION = bp.Block(mixer=bp.Attention(heads=2), channel=bp.SwiGLU(ratio=1))
MAMBA = bp.Block(mixer=bp.Mamba2(state=4, head_dim=8))
CONV = bp.Block(mixer=bp.ShortConv(kernel=3), channel=bp.MLP(ratio=1))
BOTH_WAYS = bp.Block(mixer=bp.Attention(heads=2, bidirectional=True))


def model_of(body, width=16, seed=1, spread=1.0):
    """The module in float64 with every parameter away from its start."""
    model = shaken(space(body, width=width).sample(0).build(seed=seed)).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("query.weight", "key.weight")):
                parameter.normal_(0, spread / 4, generator=generator)
    return model


def stream(batch=3, tokens=13, width=16, seed=0):
    return torch.randn(batch, tokens, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ids(batch=3, tokens=13, seed=0):
    return torch.randint(32, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def close(ours, theirs, tolerance=1e-11):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * max(1, theirs.abs().max())


def agree(layer, reference, x, tolerance=1e-11):
    """Outputs and gradients to the input and to every parameter."""
    x = x.clone().requires_grad_()
    weight = stream(*x.shape[:2], x.shape[2], seed=9)
    leaves = [x, *layer.parameters()]
    ours, theirs = layer(x), reference(layer, x)
    close(ours, theirs, tolerance)
    for mine, wanted in zip(*(torch.autograd.grad((y * weight).sum(), leaves, allow_unused=True, materialize_grads=True)
                              for y in (ours, theirs)), strict=True):
        close(mine, wanted, 10 * tolerance)


def stepped(model, given, cuts):
    """The logits of the pieces between `cuts`, one call each."""
    state, found = model.init_state(len(given), dtype=torch.float64), []
    for piece in torch.tensor_split(given, cuts, dim=1):
        logits, state = model.step(piece, state)
        found.append(logits)
    return torch.cat(found, 1)


def holds_to_steps(model, given):
    whole = model(given)
    for cuts in (list(range(1, given.shape[1])), [4], [1, 7], [given.shape[1] - 1]):
        close(stepped(model, given, cuts), whole, 1e-10)


class Next(torch.nn.Module):
    """A model's next step from a state, to count what it costs."""

    def __init__(self, model, state):
        super().__init__()
        self.model, self.state = model, state

    def forward(self, token):
        return self.model.step(token, self.state)[0]
