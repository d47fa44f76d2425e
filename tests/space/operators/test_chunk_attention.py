"""Attention to chosen chunks: what ties it to full attention, when it chooses anew, and what teaches the adapters."""

from __future__ import annotations

import math
from dataclasses import replace

import bodyplan as bp
import pytest
import torch
from bodyplan.testing import built
from exported_folders import assert_equal_to_the_module, export_all, judged

torch.set_num_threads(1)
CONFIG = bp.ChunkAttention(heads=2, chosen=2, adapter=4)


def tokens(length, width=16, dtype=torch.float64):
    return torch.randn(2, length, width, generator=torch.Generator().manual_seed(0), dtype=dtype)


def alike(config, other, dtype=torch.float64):
    first, second = built(config, 16, dtype=dtype), built(other, 16, dtype=dtype)
    second.load_state_dict(first.state_dict(), strict=False)
    return first, second


def test_all_chunks_chosen_are_full_attention_and_none_is_attention_bit_for_bit():
    ours, full = alike(replace(CONFIG, chosen=40), bp.Attention(heads=2))
    assert (ours.ends(tokens(40)) > 0).sum() > 10
    torch.testing.assert_close(ours(tokens(40)), full(tokens(40)))
    plain, full = alike(replace(CONFIG, chosen=None), bp.Attention(heads=2), torch.float32)
    assert torch.equal(plain(tokens(40, dtype=torch.float32)), full(tokens(40, dtype=torch.float32)))
    few, _ = alike(CONFIG, CONFIG)
    assert not torch.allclose(few(tokens(40)), ours(tokens(40)))


def test_a_text_of_one_chunk_is_read_whole():
    ours, full = alike(CONFIG, bp.Attention(heads=2))
    with torch.no_grad():
        ours.ends.weight.zero_()
    torch.testing.assert_close(ours(tokens(30)), full(tokens(30)))


def test_it_chooses_anew_at_the_end_of_a_chunk_alone():
    module, x = built(CONFIG, 16, dtype=torch.float64), tokens(40)
    state, chunks, ends = None, [], []
    for t in range(40):
        _, state = module.step(x[:, t:t + 1], state)
        chunks.append(state["chunks"])
        ends.append(state["end"][:, -1])
    for t in range(1, 40):
        for b in range(2):
            if not ends[t][b]:
                assert torch.equal(chunks[t][b, :t], chunks[t - 1][b]) and not chunks[t][b, t]
    moved = [not torch.equal(chunks[t][b, :t], chunks[t - 1][b]) for t in range(1, 40) for b in range(2) if ends[t][b]]
    assert len(moved) > 10 and sum(moved) > len(moved) / 2
    for b in range(2):                                        # the first chunks are all chosen
        first, second = ([t for t in range(40) if ends[t][b]])[:2]
        assert chunks[second][b].all() and chunks[first][b].all()


def model():
    space = bp.Space(embed=bp.TokenEmbedding(vocab=32), width=16, head=bp.LanguageHead(tied=False), body=bp.repeat(bp.Block(
        mixer=bp.ChunkAttention(heads=2, adapter=8, chosen=bp.choice(None, 40, 3)), channel=bp.MLP(ratio=1)), 2))
    return space, space.architecture({"body[0].mixer.chosen": 1, "body[1].mixer.chosen": 1})


def test_the_loss_is_the_divergence_of_attention_per_chunk():
    architecture = model()[1]
    net = architecture.build(seed=0).double()
    ids = torch.randint(32, (2, 15), generator=torch.Generator().manual_seed(0))
    ends = torch.rand(2, 15, generator=torch.Generator().manual_seed(1)) < 0.35
    logits, apart, missed = bp.chunk_loss(net, ids, ends)
    torch.testing.assert_close(logits, net(ids))
    wanted, guessed, x = [], [], net.embed(ids)
    for layer in net.layers:
        op, h = layer.mixer.op, layer.mixer.norm(x)
        q, k, _, _ = op.extended(h, None)
        parts = []
        for b in range(2):
            stops = [t for t in range(15) if ends[b, t]]
            for t in stops:
                done = [s for s in stops if s <= t]
                weight = torch.stack([(q[b, n, t] @ k[b, n, :t + 1].T / math.sqrt(8)).softmax(-1) for n in range(2)]).mean(0)
                share = torch.stack([weight[(done[i - 1] + 1 if i else 0):s + 1].sum() for i, s in enumerate(done)])
                guess = torch.stack([op.ask(h[b, t]) @ op.offer(h[b, s]) / math.sqrt(8) for s in done]).log_softmax(-1)
                parts.append((share / share.sum() * ((share / share.sum()).log() - guess)).sum())
        wanted.append(torch.stack(parts).mean())
        p = torch.sigmoid(op.ends(h)[..., 0])
        guessed.append(-torch.where(ends, p.log(), (1 - p).log()).mean())
        x = layer(x)
    torch.testing.assert_close(apart, torch.stack(wanted).mean())
    torch.testing.assert_close(missed, torch.stack(guessed).mean())
    assert bp.chunk_loss(net, ids, torch.zeros_like(ends))[1].item() == 0


def test_adapters_learn_where_chunks_end_and_what_is_attended_to():
    space, _ = model()
    net = space.architecture({"body[0].mixer.chosen": 1, "body[1].mixer.chosen": 1}).build(seed=0)
    ids = torch.randint(32, (4, 24), generator=torch.Generator().manual_seed(0))
    ends, before = ids < 8, net(ids)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(any(part in name for part in (".ask.", ".offer.", ".ends.")))
    optimiser, losses = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.02), []
    for _ in range(80):
        _, apart, missed = bp.chunk_loss(net, ids, ends)
        optimiser.zero_grad()
        (apart + missed).backward()
        optimiser.step()
        losses.append((apart.item(), missed.item()))
    few = space.architecture({"body[0].mixer.chosen": 2, "body[1].mixer.chosen": 2}).build()
    few.load_state_dict(net.state_dict())
    backbone = space.architecture({"body[0].mixer.chosen": 0, "body[1].mixer.chosen": 0}).build()
    backbone.load_state_dict(net.state_dict(), strict=False)
    torch.testing.assert_close(backbone(ids), before, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(few(ids), before)
    assert losses[-1][0] < 0.7 * losses[0][0] and losses[-1][1] < 0.6 * losses[0][1]
    assert torch.equal(net(ids), before)
    with pytest.raises(ValueError, match="this is about ChunkAttention"):
        bp.chunk_loss(torch.nn.Linear(2, 2), ids, ends)


def test_an_exported_folder_chooses_what_the_module_chooses(tmp_path):
    space, _ = model()
    architecture = space.architecture({"body[0].mixer.chosen": 0, "body[1].mixer.chosen": 2})
    root = export_all(tmp_path, {"chunks": architecture})
    verdict = judged(root, ["chunks"])["chunks"]
    assert verdict["steps"]
    assert_equal_to_the_module(verdict, root, "chunks")


@pytest.mark.parametrize(("fields", "text"), [({"chosen": 0}, "chosen must be"), ({"adapter": 0}, "adapter must be"),
                                              ({"heads": 3}, "heads must divide"), ({"head_dim": 3}, "must be even")])
def test_numbers_that_cannot_be_built_are_named(fields, text):
    with pytest.raises(ValueError, match=f"{text}.*here"):
        replace(CONFIG, **fields).check(16, "here")
