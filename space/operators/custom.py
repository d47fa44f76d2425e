"""A user's own module as an operator."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..axes import Axis, Dim, Init, Param, axis
from ..operator import Operator, Source

__all__ = ["Custom"]

PROBE_TOKENS = 4


@dataclass(frozen=True, eq=False)
class Custom(Operator):
    """A module of your own as mixer or channel: `Custom(MyMixer)` or `Custom(lambda width: MyMixer(width, heads=2))`.

    factory: called with the width; returns an `nn.Module` that maps (B, T, width) to the same shape, without buffers.
    name: tells networks apart in hashes and journals. Default: the name of the class or function; for a lambda, of the
    module it makes and a digest of its code. Give one when two factories would share theirs.
    causal: say False for a module that looks ahead.

    The module decodes token by token when its class has `init_state(batch, dtype, device)` and `step(x, state)`, as the
    operators of this package have; otherwise models that hold it have no decode.

    Weights are shared over widths by probing: a dimension that grows with the width is an axis of it (a multiple of the
    width is so many copies of that axis, which fits packed projections as well as hidden layers), all others are fixed.
    Parameters of one dimension keep one tensor per size. Starting values follow those the factory gives: constant where
    it is constant, else random with the same spread.
    """

    factory: Callable[[int], nn.Module] | Any = field(compare=False)
    name: Any = None
    causal: bool = True                                                               # type: ignore[misc]
    source: ClassVar[Source] = Source("(yours)", 2026)

    def __post_init__(self) -> None:
        if self.name is None and callable(self.factory):
            object.__setattr__(self, "name", _name(self.factory))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Custom) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        # A notebook cell that runs again defines another class of the same name: the factory itself must count.
        return self.factory, self.name, self.causal

    @property
    def streaming(self) -> bool:                                                      # type: ignore[override]
        """Whether the module has a decode state."""
        module = _probe(self.factory, 64) or _probe(self.factory, 8)
        return module is not None and hasattr(module, "step") and hasattr(module, "init_state")

    @property
    def fixed(self) -> Mapping[str, str]:                                             # type: ignore[override]
        """Every axis: what a module of your own does with it is not known."""
        return _Every("a module of your own may tell its entries apart")

    def check(self, width: int, where: str) -> None:
        if not callable(self.factory):
            raise TypeError(f"Custom takes a class or function of the width at {where}: got {self.factory!r}; "
                            "write Custom(MyModule) or Custom(lambda width: MyModule(width))")
        module = self._made(width, where)
        buffers = [name for name, _ in module.named_buffers()]
        if buffers:
            raise ValueError(f"a custom module keeps no buffers at {where}: got {', '.join(buffers)} in {self.name}; "
                             "compute constants in forward, and make what is trained a parameter")
        self._check_shape(module, width, where)
        unset = [name for name, declared in self.axes(width).items()
                 if not math.isfinite(declared.init.gain + declared.init.low)]
        if unset:
            raise ValueError(f"a custom module starts its parameters in its constructor at {where}: {', '.join(unset)} "
                             f"of {self.name} hold no finite values after it, as torch.empty leaves them")

    def _made(self, width: int, where: str) -> nn.Module:
        try:
            with torch.device("meta"):
                module = self.factory(width)
        except Exception as error:
            raise ValueError(f"a custom module is built from the width at {where}: {self.name}({width}) raised "
                             f"{type(error).__name__}: {error}") from error
        if not isinstance(module, nn.Module):
            raise TypeError(f"a custom factory returns an nn.Module at {where}: {self.name}({width}) gave "
                            f"{type(module).__name__}; write Custom(MyModule) or Custom(lambda width: MyModule(width))")
        return module

    def _check_shape(self, module: nn.Module, width: int, where: str) -> None:
        shape = (1, PROBE_TOKENS, width)
        try:
            result = _run(module, self.factory, width, torch.empty(shape, device="meta"))
        except Exception as error:
            raise ValueError(f"a custom module maps {list(shape)} to the same shape at {where}: {self.name} raised "
                             f"{type(error).__name__}: {error}") from error
        got = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
        if got != list(shape):
            raise ValueError(f"a custom module maps {list(shape)} to the same shape at {where}: {self.name} gave "
                             f"{got}; return one tensor (batch, tokens, width)")

    def axes(self, width: int) -> dict[str, Param]:
        return dict(_declared(self.factory, width))

    counts_by_running: ClassVar[bool] = True

    def build(self, width: int) -> nn.Module:
        return self.factory(width)                                                    # type: ignore[no-any-return]

    def macs(self, width: int, length: int) -> float:
        """Counted by torch while the module runs without values, so functional products count too."""
        return _macs(self.factory, width, length, False)

    def decode_macs(self, width: int, length: int) -> float:
        """Of one step after `length` tokens; of a whole pass over one more token when the module has no state."""
        return _macs(self.factory, width, length, True) if self.streaming else self.macs(width, length + 1)

    def state_numel(self, width: int, length: int) -> int:
        if not self.streaming:
            return 0
        state = _state_after(self.factory, width, length)
        return sum(value.numel() for value in state.values() if isinstance(value, Tensor))


class _Every(dict[str, str]):
    """One reason for every name."""

    def __init__(self, reason: str):
        super().__init__()
        self.reason = reason

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return self.reason


def _name(factory: Callable[..., Any]) -> str:
    name = getattr(factory, "__name__", type(factory).__name__)
    if name != "<lambda>":
        return str(name)
    module = _probe(factory, 64) or _probe(factory, 8)
    made = type(module).__name__ if module is not None else "lambda"
    return f"{made}-{_digest(factory)}"


def _digest(function: Any) -> str:
    """Eight hexadecimal digits of what a function does: its code, constants, names, defaults and enclosed values."""
    enclosed = [_stable(cell.cell_contents) for cell in function.__closure__ or ()]
    defaults = [_stable(value) for value in function.__defaults__ or ()]
    text = repr((_code(function.__code__), enclosed, defaults))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _code(code: CodeType) -> tuple[Any, ...]:
    constants = [_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return code.co_code.hex(), code.co_names, constants


def _stable(value: Any) -> str:
    """A text without memory addresses."""
    return getattr(value, "__qualname__", None) or repr(value)


@lru_cache(maxsize=256)
def _probe(factory: Callable[[int], Any], width: int) -> nn.Module | None:
    """The module without values, None where the factory refuses this width; shared, so only to be looked at."""
    try:
        with torch.device("meta"):
            made = factory(width)
    except Exception:
        return None
    return made if isinstance(made, nn.Module) else None


def _run(module: nn.Module, factory: Callable[[int], Any], width: int, x_BTD: Tensor) -> Any:
    """The module's output without values; with values where it needs them to decide what to do."""
    with torch.no_grad():
        try:
            return module(x_BTD)
        except (NotImplementedError, RuntimeError):
            return factory(width)(torch.zeros(x_BTD.shape))


@contextmanager
def _unset_is_nan() -> Iterator[None]:
    """Within, torch fills what `torch.empty` gives with NaN, where it would hold whatever the memory held before."""
    was, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warns)
        settings.fill_uninitialized_memory = fills


@lru_cache(maxsize=256)
def _declared(factory: Callable[[int], Any], width: int) -> tuple[tuple[str, Param], ...]:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):      # the caller may be building on the meta device
        torch.manual_seed(0)
        with _unset_is_nan():
            module = factory(width)
    others = (_probe(factory, other) for other in (2 * width, 3 * width, width // 2) if other)
    other = next((made for made in others if made is not None), None)
    shapes = {} if other is None else {name: tuple(p.shape) for name, p in other.named_parameters()}
    return tuple((name, _param(p, shapes.get(name, tuple(p.shape)), width)) for name, p in module.named_parameters())


def _param(values: Tensor, other: tuple[int, ...], width: int) -> Param:
    dims = tuple(_dim(d, size, len(other) == values.dim() and other[d] != size, width)
                 for d, size in enumerate(values.shape))
    return Param(dims, "own" if values.dim() < 2 else "nested", _like(values.detach()))


def _dim(d: int, size: int, grows: bool, width: int) -> Dim:
    main: Axis = axis(f"dim{d}", size)
    if grows and size > width and size % width == 0:
        return axis(f"copies{d}", size // width) * axis("width", width)
    return Dim(((main,),))


def _like(values: Tensor) -> Init:
    """A declared start with the constant, or the mean and spread, of these values."""
    low, high = values.min().item(), values.max().item()
    if low == high:
        return Init("constant", low=low)
    spread, mean = values.std().item(), values.mean().item()
    if abs(mean) > spread:
        return Init("uniform", low=low, high=high)
    if values.dim() < 2:
        return Init("normal", gain=spread)
    return Init("linear", gain=spread * math.sqrt(values[0].numel()))


@lru_cache(maxsize=1024)
def _macs(factory: Callable[[int], Any], width: int, length: int, decode: bool) -> float:
    module: Any = _probe(factory, width)
    x_BTD = torch.empty(1, 1 if decode else length, width, device="meta")
    state = _state_after(factory, width, length) if decode else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if decode:
            module.step(x_BTD, state)
        else:
            _run(module, factory, width, x_BTD)
    return float(counter.get_total_flops() / 2)


def _state_after(factory: Callable[[int], Any], width: int, length: int) -> dict[str, Any]:
    module: Any = _probe(factory, width)
    with torch.no_grad():
        state = module.init_state(1, dtype=torch.float32, device="meta")
        return module.step(torch.empty(1, length, width, device="meta"), state)[1] if length else state  # type: ignore[no-any-return]
