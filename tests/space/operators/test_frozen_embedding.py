"""Embeddings that are not learned: their tables, that training leaves them, and their parts in narrower networks."""

import bodyplan as bp
import pytest
import torch
from bodyplan.space.operators.feature_table import SIDE, _drawn, bit_features
from bodyplan.testing import built
from exported_folders import assert_equal_to_the_module, export_all, judged, model_text

pytest.importorskip("PIL")
LATIN = [chr(point) for point in range(256)]


def space(embed, width=16):
    return bp.Space(embed=embed, width=width, body=bp.Block(mixer=bp.Attention(heads=2), channel=bp.MLP(ratio=1)),
                    head=bp.LanguageHead(tied=False))


def table_of(module):
    return module.table if hasattr(module, "table") else module.features


@pytest.mark.parametrize("features", [None, 9])
def test_a_token_is_its_row_over_its_root_mean_square_projected(features):
    module = built(bp.FrozenEmbedding(vocab=40, features=features), 12, dtype=torch.float64)
    ids, rows = torch.tensor([[3, 39, 0], [7, 7, 21]]), []
    for number in ids.flatten().tolist():
        row = [float(entry) for entry in table_of(module)[number]]
        size = (sum(entry * entry for entry in row) / len(row) + 1e-6) ** 0.5
        row_F = torch.tensor([entry / size for entry in row], dtype=torch.float64)
        rows.append(row_F if features is None else module.projection.weight @ row_F)
    torch.testing.assert_close(module(ids), torch.stack(rows).view(2, 3, 12))


def test_glyphs_are_isometric_to_their_pictures_and_told_apart():
    table = bp.glyph_features(LATIN, 256).double()
    picture = _drawn(LATIN, SIDE, None).double()
    seen = [ord(letter) for letter in "aAoO0lI|.,;:+-*/xyz"]
    torch.testing.assert_close(torch.cdist(table[seen], table[seen]), torch.cdist(picture[seen], picture[seen]),
                               rtol=1e-5, atol=1e-2)
    apart = torch.cdist(table, table) + 1e9 * torch.eye(256)
    assert apart.min() > 1 and not table.mean(0).abs().max() > 1e-2
    spread = table.square().sum(0)
    assert (spread[:-1] >= spread[1:] - 1e-6 * spread[0]).all()
    assert torch.linalg.norm(table[ord("O")] - table[ord("Q")]) < torch.linalg.norm(table[ord("O")] - table[ord("i")])


def test_words_are_pictures_as_well_and_what_has_none_is_numbered():
    words = ["", "a", "the", "\n", "then", "", "\x00\x01"]
    table = bp.glyph_features(words, 5, size=24)
    assert table.shape == (7, 5) and torch.equal(table, bp.glyph_features(words, 5, size=24))
    assert torch.equal(table[:, :3], bp.glyph_features(words, 3, size=24))
    assert (torch.cdist(table, table) + 1e9 * torch.eye(7)).min() > 1


def test_bits_are_the_number():
    table = bit_features(100, 80)
    for number in (0, 1, 37, 99):
        assert [int(bit > 0) for bit in table[number]] == [number >> bit & 1 for bit in range(80)]


@pytest.mark.parametrize("embed", [bp.FrozenEmbedding(vocab=256), bp.FrozenEmbedding(vocab=256, features=24),
                                   bp.FrozenEmbedding(vocab=256, table="bits")], ids=repr)
def test_training_leaves_the_table_and_moves_the_rest(embed):
    task = bp.tasks.text(length=16, batch=4, held_out_batches=1)
    task.check(space(embed))
    architecture = space(embed).sample(0)
    model = architecture.build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    bp.train(model, task, steps=4)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == before.keys() - {"embed.table", "embed.features"}
    wide = embed.features or 16
    fresh = bp.FrozenEmbedding(vocab=256, table=embed.table, features=wide)
    assert torch.equal(table_of(model.embed), table_of(built(fresh, 16)))
    assert architecture.cost(16).parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert not table_of(model.embed).requires_grad


def test_a_supernet_holds_one_table_whose_first_columns_narrower_networks_have():
    embed = bp.FrozenEmbedding(vocab=256, features=bp.choice(8, None))
    net = bp.Supernet(space(embed, bp.choice(16, 24)), seed=0)
    bp.train(net, bp.tasks.text(length=16, batch=4, held_out_batches=1), steps=3)
    for genome in net.space.enumerate():
        architecture = net.space.architecture(genome)
        model = net.extract(architecture)
        assert torch.equal(table_of(model.embed), table_of(architecture.build().embed))
        assert model(torch.arange(6)[None]).isfinite().all()


def test_the_exported_file_has_the_table_and_draws_nothing(tmp_path):
    cases = {"glyphs": space(bp.FrozenEmbedding(vocab=64, features=8)).sample(0),
             "bits": space(bp.FrozenEmbedding(vocab=64, table="bits")).sample(0)}
    exported = export_all(tmp_path, cases)
    verdicts = judged(exported, list(cases))
    for case in cases:
        assert_equal_to_the_module(verdicts[case], exported, case)
        text = model_text(exported, case)
        assert "PIL" not in text and "requires_grad=False" in text


def test_a_table_of_ones_own_has_a_name():
    bp.feature_tables.register("squares of a test", lambda vocab, features: torch.arange(vocab)[:, None] ** 2.0
                               * torch.arange(1, features + 1))
    model = space(bp.FrozenEmbedding(vocab=5, table="squares of a test")).sample(0).build()
    assert model.embed.table[3, :3].tolist() == [9.0, 18.0, 27.0]


@pytest.mark.parametrize(("embed", "text"), [
    (bp.FrozenEmbedding(vocab=0), "vocab must be a whole number"),
    (bp.FrozenEmbedding(vocab=256, table="glyph"), "unknown feature table 'glyph'; did you mean 'glyphs'"),
    (bp.FrozenEmbedding(vocab=256, features=0), "features must be a whole number of at least 1 at embed: got 0; use None"),
    (bp.FrozenEmbedding(vocab=8), "no more components than there are tokens, or pixels, at embed: got 16 for 8 tokens"),
    (bp.FrozenEmbedding(vocab=256, table="bits", features=7), "bits of its own at embed: got 7 for 256 .* use features=8")])
def test_tables_that_cannot_be_are_refused(embed, text):
    with pytest.raises(ValueError, match=text):
        space(embed)


def test_a_tied_head_is_refused():
    for embed in (bp.FrozenEmbedding(vocab=256), bp.choice(bp.TokenEmbedding(vocab=256), bp.FrozenEmbedding(vocab=256))):
        with pytest.raises(ValueError, match=r"FrozenEmbedding has none; use LanguageHead\(tied=False\)"):
            bp.Space(embed=embed, width=16, body=bp.Block(channel=bp.MLP()), head=bp.LanguageHead())
