"""Token reductions: each matrix against one written entry by entry from the papers, in float64; and what ties all of them to
plain layers."""

import math

import bodyplan as bp
import pytest
import torch
from bodyplan.evaluators.measured import measured_macs
from bodyplan.space.macros.reductions import Reduction
from bodyplan.space.macros.transforms import Mixture, inverse, rows_of
from bodyplan.space.operators.telling_attention import TellingAttention
from example_macros import space
from reduced_models import BLOCK, GRID, PIXELS, images, model, random

# -- the matrices ------------------------------------------------------------------------------------------------------

def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def averaging(target, size):
    """W, entry by entry: a row for every token that stays, with the tokens that go to it by their sizes."""
    stays = [n for n, t in enumerate(target) if t == n]
    w = torch.zeros(len(stays), len(target), dtype=torch.float64)
    for m, place in enumerate(stays):
        members = [n for n, t in enumerate(target) if t == place]
        for n in members:
            w[m, n] = size[n] / sum(size[i] for i in members)
    return w


def tome(x, key, attention, size, remove, protected):
    tokens, pairs = len(key), []
    for a in range(0, tokens, 2):
        found = [(cosine(key[a], key[b]), b) for b in range(1, tokens, 2) if b >= protected]
        if a >= protected and found:
            pairs.append((*max(found), a))
    target = list(range(tokens))
    for _, b, a in sorted(pairs, reverse=True)[:remove]:
        target[a] = b
    return averaging(target, size)


def pitome(x, key, attention, size, keep, margin, alpha, protected):
    free = range(protected, len(key))
    energy = {i: sum(c if (c := cosine(key[i], key[j])) >= margin else alpha * (math.exp(c - margin) - 1)
                     for j in free) / len(free) for i in free}
    order = sorted(free, key=lambda i: -energy[i])[:2 * math.floor((1 - keep) * len(free) + 1e-9)]
    target = list(range(len(key)))
    for a in order[::2]:
        target[a] = max(order[1::2], key=lambda b: cosine(key[a], key[b]))
    return averaging(target, size)


def votes(attention, places, rounds, low, high, protected):
    """The importance of these places by weighted PageRank on the attention among them."""
    scores = []
    for head in attention:
        a = [[float(head[i, j]) for j in places] for i in places]
        a = [[value / sum(row) for value in row] for row in a]
        s = [math.sqrt(len(places)) if place < protected else 1.0 for place in places]
        for _ in range(rounds):
            s = [sum(a[i][j] * s[i] for i in range(len(places))) for j in range(len(places))]
        mean = sum(s) / len(s)
        scores.append((s, sum((value / mean - 1) ** 2 for value in s) / len(s)))
    chosen = [s for s, spread in scores if low <= spread <= high] or [s for s, _ in scores]
    return {place: math.sqrt(sum(s[i] ** 2 for s in chosen) / len(chosen)) for i, place in enumerate(places)}


def zero_tprune(x, key, attention, size, keep, similar, rounds, low, high, protected):
    tokens = len(key)
    free = list(range(protected, tokens))
    goes = math.floor((1 - keep) * len(free) + 1e-9)
    alike = min(round(similar * goes), (len(free) + 1) // 2)
    first = votes(attention, range(tokens), 1, low, high, protected)
    order = sorted(free, key=lambda i: -first[i])
    more, less = order[:len(free) // 2], order[len(free) // 2:]
    likeness = {a: max(cosine(key[a], key[b]) for b in more) for a in less}
    gone = set(sorted(less, key=lambda a: -likeness[a])[:alike])
    rest = [i for i in range(tokens) if i not in gone]
    last = votes(attention, rest, rounds, low, high, protected)
    gone |= set(sorted((i for i in rest if i >= protected), key=lambda i: last[i])[:goes - alike])
    return averaging([-1 if i in gone else i for i in range(tokens)], size)


def faster_vlm(x, key, attention, size, keep, protected):
    score = attention[:, 0].mean(0)
    free = range(protected, len(key))
    goes = math.floor((1 - keep) * len(free) + 1e-9)
    gone = set(sorted(free, key=lambda i: float(score[i]))[:goes])
    return averaging([-1 if i in gone else i for i in range(len(key))], size)


def token_transforming(x, key, attention, size, keep, temperature, protected):
    free = range(protected, len(key))
    asked = attention[:, 0] if protected else attention.mean(1)
    stays = len(free) - math.floor((1 - keep) * len(free) + 1e-9)
    rows = sorted(sorted(free, key=lambda i: -float(asked.mean(0)[i]))[:stays])
    w = torch.zeros(protected + stays, len(key), dtype=torch.float64)
    for i in range(protected):
        w[i, i] = 1
    for m, place in enumerate(rows):
        weights = [math.exp(cosine(key[place], key[n]) / temperature) for n in free]
        for n, weight in zip(free, weights, strict=True):
            w[protected + m, n] = weight / sum(weights)
    return w


CASES = {
    "ToMe": (bp.ToMe(remove=4), tome, (4, 0)),
    "ToMe beside a class token": (bp.ToMe(remove=4, protected=1), tome, (4, 1)),
    "ToMe, all pairs": (bp.ToMe(remove=99, protected=2), tome, (99, 2)),
    "PiToMe": (bp.PiToMe(keep=0.7, margin=0.3), pitome, (0.7, 0.3, 1.0, 0)),
    "PiToMe, a half": (bp.PiToMe(keep=0.5, margin=0.1, alpha=0.5, protected=1), pitome, (0.5, 0.1, 0.5, 1)),
    "ZeroTPrune": (bp.ZeroTPrune(keep=0.5), zero_tprune, (0.5, 0.5, 5, 0.01, 0.7, 0)),
    "ZeroTPrune beside a class token": (bp.ZeroTPrune(keep=0.4, similar=0.3, rounds=9, low=0.0, high=9.0, protected=1),
                                        zero_tprune, (0.4, 0.3, 9, 0.0, 9.0, 1)),
    "ZeroTPrune, no head in bounds": (bp.ZeroTPrune(keep=0.5, low=50, high=60), zero_tprune, (0.5, 0.5, 5, 50, 60, 0)),
    "FasterVLM": (bp.FasterVLM(keep=0.3), faster_vlm, (0.3, 1)),
    "TokenTransforming": (bp.TokenTransforming(keep=0.6), token_transforming, (0.6, 0.1, 0)),
    "TokenTransforming beside a class token": (bp.TokenTransforming(0.4, temperature=0.5, protected=1), token_transforming,
                                               (0.4, 0.5, 1)),
}
each = pytest.mark.parametrize("case", CASES)


def seen(tokens=13, seed=0):
    """Features, keys, attention and sizes of two sequences."""
    attention = torch.softmax(2 * random(2, 3, tokens, tokens, seed=seed + 2), -1)
    size = torch.randint(1, 5, (2, tokens), generator=torch.Generator().manual_seed(seed)).double()
    return random(2, tokens, 7, seed=seed), random(2, tokens, 5, seed=seed + 1), attention, size


@each
@pytest.mark.parametrize("tokens", [13, 18])
def test_the_matrix_is_the_papers(case, tokens):
    reduction, oracle, numbers = CASES[case]
    x, key, attention, size = seen(tokens)
    way = reduction.chooser(0.0)(x, key, attention, size)
    for b in range(2):
        wanted = oracle(x[b], key[b], attention[b], size[b], *numbers)
        torch.testing.assert_close(way.matrix()[b], wanted, rtol=1e-9, atol=1e-9)
    assert way.matrix().shape[1] == reduction.after(tokens) == tokens - reduction.goes(tokens)


@each
def test_applying_it_is_the_product_and_its_gradient(case):
    x, key, attention, size = seen()
    x.requires_grad_()
    way = CASES[case][0].chooser(0.0)(x, key, attention, size)
    torch.testing.assert_close(way.matrix().sum(-1), torch.ones_like(way.matrix()[..., 0]))
    y, wanted = way.apply(x), way.matrix() @ x
    torch.testing.assert_close(y, wanted)
    weigh = random(*y.shape, seed=5)
    torch.testing.assert_close(torch.autograd.grad((y * weigh).sum(), x, retain_graph=True)[0],
                               torch.autograd.grad((wanted * weigh).sum(), x)[0])


@each
def test_tokens_come_back_by_the_transpose_with_rows_that_sum_to_one(case):
    x, key, attention, size = seen()
    way = CASES[case][0].chooser(0.0)(x, key, attention, size)
    y = random(2, way.matrix().shape[1], 7, seed=4)
    back, w = way.restored(y, x), way.matrix()
    for b in range(2):
        for n in range(x.shape[1]):
            column = w[b, :, n]
            if isinstance(way, Mixture):
                wanted = (column[:, None] * y[b]).sum(0) / column.sum()
            else:
                wanted = y[b, column.argmax()] if column.any() else x[b, n]
            torch.testing.assert_close(back[b, n], wanted)


@each
def test_sizes_count_the_tokens_in_each_row(case):
    x, key, attention, size = seen()
    way = CASES[case][0].chooser(0.0)(x, key, attention, size)
    kept = (way.matrix().sum(1) > 0) * size
    torch.testing.assert_close(way.sizes(size).sum(-1), kept.sum(-1))
    if not isinstance(way, Mixture):
        assert torch.equal(way.sizes(size), ((way.matrix() > 0).double() @ size[..., None]).squeeze(-1))


def test_a_token_that_nothing_is_merged_into_is_bit_for_bit_what_it_was():
    x = random(1, 5, 3).float()
    way = rows_of(torch.tensor([[0, 1, 1, 3, -1]]), torch.tensor([[3.0, 1.0, 2.0, 7.0, 1.0]]), 3)
    y = way.apply(x)
    assert torch.equal(y[:, 0], x[:, 0]) and torch.equal(y[:, 2], x[:, 3])
    torch.testing.assert_close(y[:, 1], (x[:, 1] + 2 * x[:, 2]) / 3)


def test_cold_many_to_many_of_all_tokens_is_the_identity_both_ways():
    x, key, attention, size = seen()
    way = bp.TokenTransforming(keep=1.0, temperature=1e-3).chooser(0.0)(x, key, attention, size)
    torch.testing.assert_close(way.matrix(), torch.eye(13, dtype=torch.float64).expand(2, -1, -1))
    torch.testing.assert_close(way.restored(way.apply(x), x), x)
    assert torch.equal(inverse(torch.eye(4)[None]), torch.eye(4)[None])


# -- clusters ----------------------------------------------------------------------------------------------------------

def expedit(grid_HWD, rows, columns, iterations, radius, temperature, nearest):
    """(W, centres, weights of returning tokens), entry by entry."""
    height, width, _ = grid_HWD.shape
    tokens = {(i, j): grid_HWD[i, j] for i in range(height) for j in range(width)}
    centres = {}
    for r in range(rows):
        for c in range(columns):
            inside = [tokens[i, j] for i in range(r * height // rows, -(-(r + 1) * height // rows))
                      for j in range(c * width // columns, -(-(c + 1) * width // columns))]
            centres[r, c] = sum(inside) / len(inside)
    for _ in range(iterations):
        share = {}
        for (i, j), x in tokens.items():
            near = [(r, c) for r, c in centres
                    if abs(i * rows // height - r) <= radius and abs(j * columns // width - c) <= radius]
            weights = [math.exp(-float((x - centres[k]).square().sum()) / temperature) for k in near]
            share |= {((i, j), k): w / sum(weights) for k, w in zip(near, weights, strict=True)}
        total = {k: sum(share.get((n, k), 0.0) for n in tokens) for k in centres}
        w = torch.tensor([[share.get((n, k), 0.0) / total[k] for n in tokens] for k in centres], dtype=torch.float64)
        made = w @ torch.stack(list(tokens.values()))
        centres = dict(zip(centres, made, strict=True))
    back = torch.zeros(len(tokens), len(centres), dtype=torch.float64)
    for n, x in enumerate(tokens.values()):
        far = [float((x - s).square().sum()) for s in centres.values()]
        best = sorted(range(len(far)), key=far.__getitem__)[:nearest]
        total = sum(math.exp(-far[m] / temperature) for m in best)
        for m in best:
            back[n, m] = math.exp(-far[m] / temperature) / total
    return w, torch.stack(list(centres.values())), back


@pytest.mark.parametrize("numbers", [(2, 3, 1, 1, 4.0, 2), (3, 2, 4, 1, 2.0, 3), (3, 3, 2, 2, 9.0, 9)])
@pytest.mark.parametrize("sides", [(5, 7), (6, 6)])
def test_Expedit_clusters_and_brings_back_as_the_paper_says(numbers, sides):
    x = random(2, *sides, 4)
    way = bp.Clusters(*numbers).chooser(0.0)(x, x, None, x[..., 0].flatten(1))
    flat, y = x.flatten(1, 2), random(2, numbers[0] * numbers[1], 4, seed=3)
    for b in range(2):
        w, centres, back = expedit(x[b], *numbers)
        torch.testing.assert_close(way.matrix()[b], w)
        torch.testing.assert_close(way.apply(flat)[b], centres)
        torch.testing.assert_close(way.restored(y, flat)[b], back @ y[b])
    torch.testing.assert_close(way.matrix().sum(-1), torch.ones_like(way.matrix()[..., 0]))
    torch.testing.assert_close(way.matrix() @ flat, way.apply(flat))


def test_Expedit_with_as_many_clusters_as_tokens_is_the_identity():
    x = random(2, 5, 7, 4)
    way = bp.Clusters(rows=5, columns=7, radius=0, nearest=1).chooser(0.0)(x, x, None, x[..., 0].flatten(1))
    flat = x.flatten(1, 2)
    assert torch.equal(way.apply(flat), flat) and torch.equal(way.restored(flat, flat), flat)
    near = bp.Clusters(rows=99, columns=99, temperature=1e-3).chooser(0.0)(x, x, None, x[..., 0].flatten(1))
    torch.testing.assert_close(near.restored(near.apply(flat), flat), flat)


def test_Expedit_gives_layers_a_smaller_grid_and_the_stream_its_own_back():
    conv = bp.Block(mixer=bp.DepthwiseConv2d(kernel=3), channel=bp.MLP(ratio=1))
    made = space(bp.Reduced((conv, conv), bp.Clusters(2, 3), restore=True), **GRID).sample(0)
    found, net = [], made.build().eval()
    net.layers[0].layers[0].register_forward_hook(lambda _, given, out: found.append((given[0].shape[1:3], out.shape[1:3])))
    net.layers[0].register_forward_hook(lambda _, given, out: found.append((given[0].shape, out.shape)))
    net(images())
    assert found == [((2, 3), (2, 3)), ((3, 5, 5, 16), (3, 5, 5, 16))]
    plain = space((conv, conv), **GRID).sample(0).build().eval()
    same = model(bp.Reduced((conv, conv), bp.Clusters(5, 5, radius=0, nearest=1), restore=True), **GRID)
    same.load_state_dict({name.replace("layers.", "layers.0.layers.", 1) if name.startswith("layers.") else name: p
                          for name, p in plain.state_dict().items()})
    assert torch.equal(same(images()), plain(images()))


# -- layers ------------------------------------------------------------------------------------------------------------

NOTHING = {"PiToMe": bp.PiToMe(keep=1.0), "ToMe": bp.ToMe(remove=0), "ZeroTPrune": bp.ZeroTPrune(keep=1.0),
           "FasterVLM": bp.FasterVLM(keep=1.0), "TokenTransforming": bp.TokenTransforming(keep=1)}
FEWER = {"PiToMe": bp.PiToMe(keep=0.8, protected=1), "ToMe": bp.ToMe(remove=3, protected=1),
         "ZeroTPrune": bp.ZeroTPrune(keep=0.7, protected=1), "FasterVLM": bp.FasterVLM(keep=0.7),
         "TokenTransforming": bp.TokenTransforming(keep=0.7, protected=1), "Clusters": bp.Clusters(3, 3),
         "FirstTokens": bp.FirstTokens(9)}
fewer = pytest.mark.parametrize("name", FEWER)


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("restore", [False, True])
def test_where_all_tokens_stay_it_is_the_plain_layers_bit_for_bit(name, restore):
    plain = space((BLOCK, BLOCK), **PIXELS).sample(0)
    kept = space(bp.Reduced((BLOCK, BLOCK), NOTHING[name], restore=restore), **PIXELS).sample(0)
    assert kept.hash == plain.hash and kept.cost(25) == plain.cost(25)
    assert torch.equal(kept.build(seed=1)(images()), plain.build(seed=1)(images()))


@fewer
@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("kind", [PIXELS, GRID], ids=["sequence", "grid"])
def test_it_has_the_parameters_of_the_layers_and_the_length_it_says(name, restore, kind):
    body = (bp.ClassToken(), bp.Reduced((BLOCK, BLOCK, BLOCK), FEWER[name], restore=restore))
    made, found = space(body, **kind).sample(0), []
    net, plain = made.build(), space((bp.ClassToken(), bp.Stack((BLOCK, BLOCK, BLOCK))), **kind).sample(0).build()
    assert {n: p.shape for n, p in net.state_dict().items()} == {n: p.shape for n, p in plain.state_dict().items()}
    net.load_state_dict(plain.state_dict())
    net.layers[1].register_forward_hook(lambda _, given, out: found.append((given[0].shape, out.shape)))
    logits = net(images())
    before, after = (shape[1:-1] if len(shape) == 4 else shape[1] for shape in found[0])
    said = body[1].out(16, tuple(before) if kind is GRID else before)[1]
    assert said == (tuple(after) if kind is GRID else after)
    assert (said == (tuple(before) if kind is GRID else before)) == restore
    assert logits.shape == (3, 5) and logits.isfinite().all()
    assert not torch.equal(logits, plain(images()))


def whole_attention(x, op, size):
    """Attention written out with a key for every original token: a token of size s stands there s times."""
    q, k, v = (part(x).view(len(x), op.heads, -1) for part in (op.query, op.key, op.value))
    again = [n for n, s in enumerate(size) for _ in range(int(s))]
    rows = []
    for t in range(len(x)):
        for h in range(op.heads):
            score = torch.stack([q[t, h] @ k[n, h] for n in again]) / math.sqrt(k.shape[-1])
            rows.append(sum(w * v[n, h] for w, n in zip(torch.softmax(score, 0), again, strict=True)))
    return op.out(torch.cat(rows).view(len(x), -1)), k.mean(1)


@pytest.mark.parametrize(("reduction", "oracle"), [
    (bp.ToMe(remove=3), lambda depth: lambda *seen: tome(*seen, 3, 0)),
    (bp.PiToMe(keep=0.7), lambda depth: lambda *seen: pitome(*seen, 0.7, 0.9 * (1 - depth), 1.0, 0)),
], ids=["ToMe", "PiToMe"])
@torch.no_grad()
def test_merging_layers_are_those_of_the_paper(reduction, oracle):
    net = model(bp.Reduced((BLOCK, BLOCK, BLOCK), reduction)).double()
    x = net.embed(images(1).double())[0]
    size = torch.ones(len(x), dtype=torch.float64)
    for number, layer in enumerate(net.layers[0].layers):
        y, key = whole_attention(layer.mixer.norm(x), layer.mixer.op, size)
        x = x + y
        w = oracle(number / 3)(x, key, None, size)
        x, size = w @ x, ((w > 0).double() @ size)
        x = x + layer.channel.op(layer.channel.norm(x))
    torch.testing.assert_close(net.layers[0](net.embed(images(1).double()))[0], x)
    assert size.sum() == 25 and size.max() > 1


@torch.no_grad()
def test_ZeroTPrune_stands_behind_the_layers_it_is_told_of_and_reads_their_attention():
    reduction = bp.ZeroTPrune(keep=0.6, protected=1)
    net = model((bp.ClassToken(), bp.Reduced((BLOCK, BLOCK, BLOCK), reduction, at=(0, -1)))).double()
    stream = net.layers[0](net.embed(images(1).double()))
    x = stream[0]
    for number, layer in enumerate(net.layers[1].layers):
        ones = torch.ones(len(x))
        u = layer.mixer.norm(x) if hasattr(layer.mixer, "norm") else x
        op = layer.mixer.op
        q, k = (part(u).view(len(x), op.heads, -1) for part in (op.query, op.key))
        attention = torch.softmax(torch.einsum("thp,shp->hts", q, k) / math.sqrt(k.shape[-1]), -1)
        x = x + whole_attention(u, op, ones)[0]
        x = x + layer.channel.op(layer.channel.norm(x))
        if number != 1:
            x = zero_tprune(x, k.mean(1), attention, ones.double(), 0.6, 0.5, 5, 0.01, 0.7, 1) @ x
    torch.testing.assert_close(net.layers[1](stream)[0], x)


@torch.no_grad()
def test_telling_attention_is_the_attention_it_stands_for():
    for options in ({}, {"kv_heads": 2}, {"qk_norm": True, "rotary": False}, {"sub_norm": True}):
        attention = bp.Attention(heads=4, bidirectional=True, **options)
        plain = model(bp.Block(mixer=attention)).double().layers[0].mixer.op
        net = model(bp.Reduced(bp.Block(mixer=attention), bp.ToMe(1))).double().layers[0].layers[0].mixer.op
        assert isinstance(net, TellingAttention)
        net.load_state_dict(plain.state_dict())
        x = random(2, 9, 16)
        y, key, weights = net.telling(x, None)
        torch.testing.assert_close(y, plain(x))
        assert key.shape == (2, 9, 4) and weights.shape == (2, 4, 9, 9)
        torch.testing.assert_close(net.telling(x, torch.ones(2, 9))[0], y)


@pytest.mark.parametrize("name", sorted(FEWER.keys() - {"Clusters"}))
@torch.no_grad()
def test_a_class_token_stays_first_and_the_others_in_their_order(name):
    reduction = FEWER[name]
    x, key, attention, size = seen()
    w = reduction.chooser(0.0)(x, key, attention, size).matrix()
    assert torch.equal(w[:, 0], torch.eye(13, dtype=torch.float64)[0].expand(2, -1))
    if name in ("ZeroTPrune", "FasterVLM", "FirstTokens"):
        places = w.argmax(-1)
        assert torch.equal(places, places.sort(-1).values)


def test_fewer_tokens_cost_what_is_said_and_is_measured():
    plain, cheap = model((BLOCK,) * 4), model(bp.Reduced((BLOCK,) * 4, bp.PiToMe(keep=0.6)))
    found = [measured_macs(net, [images(1)]) for net in (plain, cheap)]
    assert found[1].macs == pytest.approx(found[1].expected, rel=1e-9)
    assert found[1].macs < 0.8 * found[0].macs


# -- items -------------------------------------------------------------------------------------------------------------

ITEMS = {"Clusters": bp.Clusters(3, 2), "ToMe": bp.ToMe(4), "PiToMe": bp.PiToMe(0.6), "FirstTokens": bp.FirstTokens(3)}


@pytest.mark.parametrize("name", ITEMS)
@pytest.mark.parametrize("kind", [PIXELS, GRID], ids=["sequence", "grid"])
@torch.no_grad()
def test_an_item_hands_on_the_product_with_its_matrix(name, kind):
    net = model((bp.Reduce(ITEMS[name]), BLOCK), **kind)
    x = net.embed(images())
    flat = x.flatten(1, -2)
    y, way = net.layers[0](x), net.layers[0].chooser(x, flat, None, torch.ones(3, 25))
    torch.testing.assert_close(y.flatten(1, -2), way.matrix() @ flat)
    said = bp.Reduce(ITEMS[name]).out(16, 25 if kind is PIXELS else (5, 5))[1]
    assert y.shape[1:-1] == (said if isinstance(said, tuple) else (said,))
    assert net(images()).shape == (3, 5)


@torch.no_grad()
def test_a_class_token_alone_reaches_the_head():
    net = model((bp.ClassToken(), BLOCK, bp.Reduce(bp.FirstTokens())))
    x = net.layers[1](net.layers[0](net.embed(images())))
    assert x.shape == (3, 26, 16)
    assert torch.equal(net(images()), net.head(net.norm(x[:, :1])))
    assert torch.equal(net.layers[0](x)[:, 0], net.layers[0].token.expand(3, -1))


# -- what is refused ---------------------------------------------------------------------------------------------------

CAUSAL = bp.Block(mixer=bp.Attention(heads=2), channel=bp.MLP())
REFUSED = {
    "keep is a share of the tokens above 0 and up to 1 at body.reduction: got 1.5": bp.Reduced((BLOCK,), bp.PiToMe(keep=1.5)),
    "keep is at least a half": bp.Reduced((BLOCK,), bp.PiToMe(keep=0.4)),
    "margin is a cosine": bp.Reduced((BLOCK,), bp.PiToMe(margin=2.0)),
    r"at has numbers of layers at body: got \(3,\) for 1 layers": bp.Reduced((BLOCK,), bp.ZeroTPrune(), at=(3,)),
    "ToMe reads keys of attention at body.layers: got none": bp.Reduced(
        (bp.Block(mixer=bp.choice(bp.ShortConv(), bp.Attention())), CAUSAL), bp.choice(bp.Clusters(), bp.ToMe(1))),
    "reduction is one such as": bp.Reduced((BLOCK,), bp.Attention()),
    "ZeroTPrune reads attention, which stands in layers, at body": bp.Reduce(bp.ZeroTPrune()),
    "protected must be a whole number of at least 1": bp.Reduced((BLOCK,), bp.FasterVLM(protected=0)),
    "radius must be a whole number of at least 0": bp.Reduce(bp.Clusters(radius=-1)),
    "temperature must be a positive number": bp.Reduced((BLOCK,), bp.TokenTransforming(temperature=0)),
    "similar is a share from 0 to 1": bp.Reduced((BLOCK,), bp.ZeroTPrune(similar=2)),
    "low and high bound a variance": bp.Reduced((BLOCK,), bp.ZeroTPrune(low=2, high=1)),
    "count must be a whole number of at least 1": bp.ClassToken(0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_built_is_refused_with_its_place(message):
    with pytest.raises((ValueError, TypeError), match=message):
        space(REFUSED[message], **PIXELS)


def test_a_reduction_stands_at_the_layers_that_can_tell_it_something():
    deaf = bp.Block(mixer=bp.ShortConv(), channel=bp.MLP())
    net = model(bp.Reduced((deaf, BLOCK, deaf), bp.PiToMe(0.6)))
    assert net.layers[0].turns == (-1, 0, -1) and net(images()).shape == (3, 5)
    mixed = space(bp.Reduced(bp.repeat(bp.Block(mixer=bp.choice(bp.ShortConv(), BLOCK.mixer)), 3), bp.PiToMe(0.6)), **PIXELS)
    for seed in range(8):
        made = mixed.sample(seed)
        assert made.build()(images()).shape == (3, 5)


def test_layers_that_are_not_told_of_may_be_anything():
    looped = bp.Looped((BLOCK,), bp.Loop(2))
    net = model(bp.Reduced((looped, BLOCK, CAUSAL), bp.ZeroTPrune(0.5), at=(1,)))
    assert net(images()).shape == (3, 5)
    mixers = bp.Block(mixer=bp.Attention(heads=2, bidirectional=True))
    assert model(bp.Reduced((mixers, bp.Block(), mixers), bp.PiToMe(0.6), restore=True))(images()).shape == (3, 5)


def test_every_reduction_has_a_source_and_a_proof():
    for kind in (bp.PiToMe, bp.ToMe, bp.ZeroTPrune, bp.FasterVLM, bp.TokenTransforming, bp.Clusters):
        assert issubclass(kind, Reduction) and kind.source.year > 2000 and "test_reductions" in kind.proof


# -- trained networks --------------------------------------------------------------------------------------------------

def test_a_trained_network_takes_a_reduction_with_its_weights_as_they_are():
    plain = model((bp.ClassToken(), BLOCK, BLOCK, BLOCK, bp.Reduce(bp.FirstTokens())))
    same = bp.reduced(plain, bp.PiToMe(keep=1.0, protected=1), layers=(1, 4))
    assert torch.equal(same(images()), plain(images())) and not same.training
    fewer_tokens = bp.reduced(plain, bp.PiToMe(keep=0.8, protected=1), layers=(1, 4))
    wanted = {p.data_ptr(): None for p in fewer_tokens.parameters()}
    assert len(wanted) == len(list(plain.parameters()))
    for held, made in zip(plain.layers[1:4], fewer_tokens.layers[1].layers, strict=True):
        for (name, before), (again, after) in zip(held.named_parameters(), made.named_parameters(), strict=True):
            assert name == again and torch.equal(before, after)
    assert (fewer_tokens(images()) - plain(images())).abs().max() > 0
    assert measured_macs(fewer_tokens, [images(1)]).macs < measured_macs(plain, [images(1)]).macs
    dense = bp.reduced(model((BLOCK, BLOCK, BLOCK), **GRID), bp.Clusters(2, 2), at=(1,), restore=True)
    assert dense(images()).shape == (3, 5)


def test_a_network_that_cannot_take_a_reduction_is_refused():
    plain = model((BLOCK, BLOCK))
    with pytest.raises(ValueError, match=r"got \(0, 3\) of 2"):
        bp.reduced(plain, bp.PiToMe(), layers=(0, 3))
    with pytest.raises(ValueError, match="got Linear"):
        bp.reduced(torch.nn.Linear(2, 2), bp.PiToMe())
    with pytest.raises(ValueError, match="keep is at least a half"):
        bp.reduced(plain, bp.PiToMe(keep=0.3))
