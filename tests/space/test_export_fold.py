"""Specialisation of source: what may go, what must stay."""

from __future__ import annotations

import ast
import textwrap

import pytest
from bodyplan.space.export.facts import PRESENT
from bodyplan.space.export.fold import specialise
from bodyplan.space.export.program import Chunk, Instance
from bodyplan.space.export.sharing import hands_on_alone, keys_read, without, without_checks, without_keys
from bodyplan.space.export.text import join_short_statements


def folded(source: str, *constructions: dict, attributes: list[dict] | None = None, name: str = "Op",
           **functions: str) -> str:
    """The class after specialisation to these constructions; attributes default to the arguments."""
    seen = attributes or list(constructions)
    instances = [Instance(dict(a), dict(b)) for a, b in zip(constructions, seen, strict=True)]
    chunks = {n: Chunk(n, "function", textwrap.dedent(text).lstrip("\n")) for n, text in functions.items()}
    chunks[name] = Chunk(name, "class", textwrap.dedent(source).lstrip("\n"), instances=instances)
    result = specialise(chunks, [name])
    for chunk in result.values():
        ast.parse(chunk.text)
    return "\n\n".join(chunk.text for chunk in result.values())


WINDOWED = '''
class Op(nn.Module):
    """Attend."""

    def __init__(self, width: int, heads: int, window: int | None = None,
                 base: float = 10.0):
        super().__init__()
        self.heads = heads
        self.window, self.base = window, base

    def forward(self, x):
        # keep what the window covers
        keep = len(x) if self.window is None else min(self.window, len(x))
        if self.window is None and keep > 1:
            return self.full(x)
        return x[-keep:] * self.heads * self.base  # newest last

    def full(self, x):
        """Everything."""
        return x
'''


def test_a_switch_that_is_always_off_goes_with_its_branches_and_parameters():
    text = folded(WINDOWED, {"width": 8, "heads": 2, "window": None, "base": 10.0},
                  {"width": 8, "heads": 4, "window": None, "base": 10.0})
    assert "window" not in text.replace("keep what the window covers", "")
    assert "def __init__(self, heads: int, base: float = 10.0):" in text
    assert "keep = len(x)\n" in text and "if keep > 1:" in text and "def full" in text


def test_an_option_that_is_always_given_loses_its_none_and_the_methods_for_none():
    text = folded(WINDOWED, {"width": 8, "heads": 2, "window": 4, "base": 10.0},
                  {"width": 8, "heads": 2, "window": 9, "base": 10.0})
    assert "window: int," in text and "None" not in text and "def full" not in text
    assert "keep = min(self.window, len(x))" in text


def test_a_choice_that_layers_make_differently_stays():
    text = folded(WINDOWED, {"width": 8, "heads": 2, "window": None, "base": 10.0},
                  {"width": 8, "heads": 2, "window": 9, "base": 10.0})
    assert "window: int | None = None" in text and "if self.window is None and keep > 1:" in text


def test_comments_and_spacing_survive():
    text = folded(WINDOWED, {"width": 8, "heads": 2, "window": 4, "base": 10.0})
    assert "        # keep what the window covers\n" in text and "# newest last" in text


ACTIVATED = '''
class Op(nn.Module):
    def __init__(self, activation: str):
        super().__init__()
        self.activation = activation

    def forward(self, x):
        if self.activation == "relu":
            x = F.relu(x)
        elif self.activation == "gelu":
            # smooth
            x = F.gelu(x)
        else:
            x = F.silu(x)
        return x
'''


@pytest.mark.parametrize(("name", "kept"), [("relu", "F.relu"), ("gelu", "F.gelu"), ("silu", "F.silu")])
def test_one_arm_of_an_if_chain_remains(name, kept):
    text = folded(ACTIVATED, {"activation": name})
    arms = [a for a in ("F.relu", "F.gelu", "F.silu") if a in text]
    assert arms == [kept] and "if" not in text and "activation" not in text
    assert ("# smooth" in text) == (name == "gelu")


@pytest.mark.parametrize(("names", "gone"), [(("relu", "gelu"), "F.silu"), (("gelu", "silu"), "F.relu"),
                                             (("relu", "silu"), "F.gelu")])
def test_an_arm_that_no_layer_takes_goes(names, gone):
    text = folded(ACTIVATED, *({"activation": name} for name in names))
    assert gone not in text and "if self.activation ==" in text and "else:" in text


def run(text: str, name: str, *arguments: object) -> object:
    scope: dict = {}
    exec(text, scope)
    return scope[name](*arguments)


def test_a_function_loses_the_parameters_that_no_call_sets():
    text = folded("""
        class Op:
            def forward(self, x):
                return scan(x, x * 2.0)
        """, {}, scan="""
        def scan(x, y, *, gate=None, reverse=False, state=None):
            if state is None:
                state = 0.0
            if reverse:
                x = -x
            out = x + y + state
            return out if gate is None else out * gate
        """)
    assert "def scan(x, y):" in text and "gate" not in text and "reverse" not in text
    assert "state = 0.0" in text
    assert run(text, "scan", 1.0, 2.0) == 3.0


def test_a_parameter_that_one_call_sets_and_one_does_not_stays():
    text = folded("""
        class Op:
            def forward(self, x):
                return scan(x) + scan(x, state=x)
        """, {}, scan="""
        def scan(x, state=None):
            if state is None:
                state = 1.0
            return x + state
        """)
    assert "def scan(x, state=None):" in text and "if state is None:" in text


def test_a_value_that_may_be_none_is_not_taken_for_given():
    source = """
        class Op:
            def forward(self, x):
                return self.step(x, {})

            def step(self, x, state):
                return scan(x, state.get("past"))
        """
    text = folded(source, {}, scan="""
        def scan(x, past):
            return x if past is None else x + past
        """)
    assert "if past is None" in text


def test_a_parameter_rebound_in_a_loop_is_not_folded():
    text = folded("""
        class Op:
            def forward(self, x):
                return scan(x, None)
        """, {}, scan="""
        def scan(x, last):
            for item in x:
                if last is None:
                    last = item
            return last
        """)
    assert "if last is None:" in text
    assert run(text, "scan", [3, 4], None) == 3


def test_an_attribute_that_a_method_changes_is_not_folded():
    text = folded("""
        class Op:
            def __init__(self):
                self.seen = None

            def forward(self, x):
                if self.seen is None:
                    self.seen = x
                return self.seen
        """, {}, attributes=[{"seen": None}])
    assert "if self.seen is None:" in text


def test_a_function_passed_as_a_value_keeps_its_parameters():
    text = folded("""
        class Op:
            def forward(self, x):
                return map(double, x)
        """, {}, double="""
        def double(x, times=None):
            return x * 2 if times is None else x * times
        """)
    assert "times=None" in text


def test_a_table_look_up_by_a_fixed_key_becomes_its_entry():
    text = folded("""
        class Op:
            def __init__(self, activation: str = "gelu"):
                self.activate = {"gelu": F.gelu, "relu": F.relu}[activation]

            def forward(self, x):
                return self.activate(x)
        """, {"activation": "relu"}, attributes=[{}])
    assert "self.activate = F.relu" in text and "gelu" not in text and "def __init__(self):" in text


def test_numbers_keep_their_names():
    text = folded("""
        class Op:
            def __init__(self, width: int, gate: bool):
                self.sizes = [width * 2, width if gate else 0]

            def forward(self, x):
                a, b = x.split(self.sizes)
                return a * b if self.sizes[1] else a
        """, {"width": 8, "gate": True}, attributes=[{"sizes": [16, 8]}])
    assert "self.sizes = [width * 2, width]" in text and "return a * b\n" in text and "gate" not in text


def test_a_subclass_and_its_base_are_folded_together():
    text = folded("""
        class Op(Base):
            def forward(self, x):
                return self.scaled(x)
        """, {"scale": None}, attributes=[{"scale": None}])
    assert "class Op(Base)" in text
    base = Chunk("Base", "class", textwrap.dedent("""
        class Base:
            def __init__(self, scale=None):
                self.scale = scale

            def scaled(self, x):
                return x if self.scale is None else x * self.scale
        """).lstrip("\n"), instances=[Instance({"scale": None}, {"scale": None})])
    sub = Chunk("Op", "class", "class Op(Base):\n    def forward(self, x):\n        return self.scaled(x)\n",
                instances=[Instance({}, {"scale": None})])
    result = specialise({"Op": sub, "Base": base}, ["Op"])
    assert list(result) == ["Base", "Op"]
    assert "scale = scale" not in result["Base"].text and "return x\n" in result["Base"].text


def test_bytes_beyond_ascii_do_not_shift_edits():
    text = folded("""
        class Op:
            def forward(self, x):
                \"\"\"Größe.\"\"\"
                y = 'ä' if self.flag else 'ö'; z = y  # µ
                return z
        """, {}, attributes=[{}])
    assert "'ä' if self.flag else 'ö'" in text
    text = folded("""
        class Op:
            def __init__(self, flag):
                self.flag = flag

            def forward(self, x):
                return ("ääää", x if self.flag else -x)  # µ
        """, {"flag": False})
    assert 'return ("ääää", -x)  # µ' in text


def test_a_shortened_statement_goes_back_on_one_line_and_others_stay():
    original = "def f(a,\n      b):\n    c = [1,\n         2]\n    return g(a,\n             b, c)\n"
    edited = original.replace("             b, c)", "             b)")
    assert join_short_statements(edited, original) == original.replace("g(a,\n             b, c)", "g(a, b)")


def test_what_a_loop_zips_in_vain_goes():
    text = folded('''
    class Op(nn.Module):
        def __init__(self, parts: list, flags: list):
            super().__init__()
            self.parts, self.flags = nn.ModuleList(parts), flags

        def forward(self, x):
            for part, flag in zip(self.parts, self.flags, strict=True):
                x = part(x)
            return [part(x) + n for part, flag, n in zip(self.parts, self.flags, x, strict=True)]
    ''', {"parts": [object()], "flags": [True]}, attributes=[{"parts": PRESENT, "flags": [True]}])
    assert "for part in self.parts:" in text and "for part, n in zip(self.parts, x, strict=True)" in text
    assert "flags" not in text


def test_an_empty_tuple_is_not_unpacked_into_a_call():
    text = folded('''
    class Op(nn.Module):
        def __init__(self, more: tuple | None = None):
            super().__init__()
            self.more = more

        def forward(self, x, inner, out):
            rest = () if self.more is None else self.more
            return out(inner(x, *rest), *rest)
    ''', {"more": None})
    assert "return out(inner(x))" in text and "rest" not in text


SHARING = '''
class Op(nn.Module):
    """Hands on."""

    shares = True

    def forward(self, x, shared: dict | None = None):
        return self.step(x, None, shared)[0]

    def step(self, x, state, shared: dict | None = None):
        if shared is not None:
            shared["kv"] = x
        if shared is not None:
            shared.setdefault("first", x)
        if "memory" not in shared:
            raise ValueError("no memory")
        return other(x, shared), state

    def alone(self, x):
        shared = x + 1
        return [shared, other(x, shared)]
'''.lstrip("\n")


def test_what_is_handed_on_goes_from_the_functions_that_take_it_and_no_others():
    text = without(SHARING, "shared", {"other"})
    assert "shares" not in text and '"""Hands on."""\n\n    def forward(self, x):' in text
    assert "self.step(x, None)[0]" in text and "other(x, None), state" in text and "if None is not None:" in text
    assert "shared = x + 1" in text and "other(x, shared)]" in text


def test_what_nobody_reads_is_not_left_and_what_always_fits_is_not_checked():
    text = without_checks(without_keys(SHARING, {"kv"}))
    assert 'shared["kv"] = x' in text and "setdefault" not in text and "raise" not in text
    assert text.count("if shared is not None") == 1


def test_names_are_read_in_every_way_of_looking_up_and_unknown_ways_read_all():
    def read(line, home="own"):
        return keys_read([Chunk("f", "function", f"def f(x, shared):\n    {line}\n", home)])

    assert read("return shared['a'], shared.get('b'), 'c' in shared") == {"a", "b", "c"}
    assert read("shared['a'] = x\n    shared.setdefault('b', x)\n    return x(shared)") == set()
    assert read("return {**shared}") is None and read("return list(shared.values())") is None
    assert read("return {**shared}", home="bodyplan.space.macros.own") == set()


def test_a_class_that_only_passes_on_to_itself_hands_nothing_on():
    assert hands_on_alone("class A:\n    def f(self, x, shared=None):\n        return self.g(x, shared)\n")
    assert not hands_on_alone("class A:\n    def f(self, x, shared=None):\n        return self.op.g(x, shared)\n")
