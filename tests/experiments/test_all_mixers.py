"""Every mixer at once: who stands in the spaces, that a sweep exports its front, and the page from its answer."""

import bodyplan as bp
import pytest
import torch
from bodyplan.experiments import all_mixers
from bodyplan.experiments.fidelity_page import BEGIN, END
from bodyplan.space.operator import operators
from bodyplan.space.reach import patterns_of

OF_YOUR_OWN = {"Custom", "Zero"}        # a module of the user's, and nothing at all


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def self_mixers():
    for name in operators.names():
        kind = operators.get(name)
        if kind.kind == "mixer" and not kind.cross and name not in OF_YOUR_OWN:
            yield name, kind


def test_every_causal_mixer_that_stands_alone_is_a_choice_on_text():
    configs = all_mixers.all_mixers("text")
    there = {type(config).__name__ for config in configs}
    wanted = {name for name, kind in self_mixers() if "causal self" in patterns_of(kind) and kind.spatial is not True}
    assert {name for name in wanted - there if getattr(operators.get(name), "reads_shared", False) is not True} == set()
    assert all(config.causal for config in configs)


def test_every_two_dimensional_mixer_is_a_choice_on_images():
    there = {type(config).__name__ for config in all_mixers.all_mixers("images")}
    assert {name for name, kind in self_mixers() if kind.spatial is True} - there == set()


@pytest.mark.parametrize("frame", list(all_mixers.FRAMES))
def test_a_layer_chooses_among_all_of_them(frame):
    space, mixers = all_mixers.space_of(frame), len(all_mixers.all_mixers(frame))
    assert space.size() == sum(mixers**depth for depth in range(all_mixers.DEPTH[0], all_mixers.DEPTH[1] + 1))


@pytest.mark.long
def test_a_sweep_exports_every_member_of_its_front(tmp_path, monkeypatch):
    few = [bp.DepthwiseConv2d(), bp.Pooling(), bp.WindowAttention(heads=2)]
    monkeypatch.setattr(all_mixers, "all_mixers", lambda frame, width=64: few)
    made = all_mixers.sweep_of

    def inline(*given, **effort):
        sweep = made(*given, **effort)
        task = bp.tasks.images(batch=4, held_out_batches=1)
        return bp.Sweep(sweep.space, task, sweep.objectives, trials=sweep.trials, supernet=True, supernet_steps=2,
                        retrain=0, fidelity_sample=0, executor="inline", tracking=False, directory=sweep.directory,
                        quiet=True)

    monkeypatch.setattr(all_mixers, "sweep_of", inline)
    answer = all_mixers.run("images", 1.0, tmp_path, "it", steps=2, trials=3)
    assert answer["members"] and all(member["exported"] for member in answer["members"]), answer["members"]
    assert set(answer["tried"]) <= {type(config).__name__ for config in few} and answer["trials"] == 3
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    all_mixers.write_page(page, tmp_path)
    text = page.read_text()
    assert f"bit for bit: {len(answer['members'])} of {len(answer['members'])}." in text and "old" not in text
    assert text.startswith("before") and text.endswith("after\n") and "text" not in text.split("`it`")[0].split(BEGIN)[1]


def test_a_page_without_an_answer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no answer of a sweep"):
        all_mixers.write_page(all_mixers.PAGE, tmp_path)
