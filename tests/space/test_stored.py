"""What is stored: spaces, genomes and architectures as JSON, their schemas, and files of older versions."""

import json
from pathlib import Path

import bodyplan as bp
import pytest
from bodyplan.space.architecture import Architecture
from bodyplan.space.choices import choice, integer, optional, permutation, real, repeat, subset, tied
from bodyplan.space.genome import Genome
from bodyplan.space.grammar import rule
from bodyplan.space.macros.looped import Looped
from bodyplan.space.macros.stack import Stack
from bodyplan.space.stored import serialise, versions
from example_spaces import SPACES, make
from random_spaces import genomes_of, random_space

STORED = Path(__file__).parent / "stored"
SCHEMAS = Path(bp.__file__).parent / "space" / "schema"
MLP = bp.Block(channel=bp.MLP(ratio=choice(1, 2)))
SHARED = tied(choice(3, 4))
BODIES = {
    "subset": subset(MLP, bp.Block(mixer=bp.Hyena()), size=(0, 2), ordered=True),
    "permutation": permutation(MLP, bp.Block(mixer=bp.Hyena())),
    "optional": bp.Block(mixer=optional(bp.Attention(heads=2, window=optional(8))), channel=bp.MLP()),
    "any": repeat(MLP, times=integer(1, 3), keep="any"),
    "real": bp.Block(channel=bp.MLP(ratio=real(1.0, 3.0, step=1.0))),
    "tied": (bp.Block(mixer=bp.ShortConv(kernel=SHARED)), bp.Block(mixer=bp.ShortConv(kernel=SHARED))),
    "rule": rule(lambda a: choice(MLP, (MLP, rule(lambda b: choice(a, (MLP, b)), depth=2), optional(a))), depth=2),
    "macros": Stack(layers=(MLP, Looped(layers=MLP, recursion=choice(bp.Once(), bp.Loop(times=2))))),
}


def written(item):
    return json.loads(json.dumps(item.to_json()))


def stored(kind, version):
    return json.loads((STORED / f"{kind}_v{version}.json").read_text())


@pytest.mark.parametrize("name", BODIES)
def test_every_word_round_trips(name):
    space = make(width=32, body=BODIES[name])
    again = bp.Space.from_json(written(space))
    assert again.to_json() == space.to_json()
    assert again.hash == space.hash
    assert genomes_of(again) == genomes_of(space)
    assert again.sample(3).hash == space.sample(3).hash


@pytest.mark.parametrize("seed", range(12))
def test_random_spaces_round_trip(seed):
    space = random_space(seed)
    again = bp.Space.from_json(written(space))
    assert again.hash == space.hash
    assert genomes_of(again) == genomes_of(space)


def test_fields_at_their_default_are_left_out_so_that_new_ones_change_no_hash():
    body = make(body=repeat(bp.Block(mixer=bp.Attention(heads=4)), times=2)).to_json()["definition"]["body"]
    assert body["Repeat"].keys() == {"item", "times"}
    assert body["Repeat"]["item"]["Block"].keys() == {"mixer"}


def test_operators_are_found_in_a_process_that_imported_none(tmp_path):
    import subprocess
    import sys

    (tmp_path / "space.json").write_text(json.dumps(stored("space", 1)))
    code = ("import json, bodyplan as bp; from bodyplan.space.space import Space; "
            f"print(Space.from_json(json.load(open({str(tmp_path / 'space.json')!r}))).hash)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == bp.Space.from_json(stored("space", 1)).hash, done.stderr


def test_code_of_the_users_own_is_named():
    with pytest.raises(ValueError, match=r"body\.mixer holds a NobodysMixer, which is no operator known here"):
        serialise.from_plain({"body": {"Block": {"mixer": {"NobodysMixer": {}}}}})


# -- older versions ----------------------------------------------------------------------------------------------------


def test_a_space_of_version_1_is_read():
    space = bp.Space.from_json(stored("space", 1))
    assert len(space.genes) == 60
    assert space.to_json()["schema_version"] == versions.SPACE
    assert bp.Space.from_json(written(space)).hash == space.hash


def test_an_architecture_of_version_1_is_read_with_its_space_and_with_no_other():
    space = bp.Space.from_json(stored("space", 1))
    architecture = Architecture.from_json(stored("architecture", 1), space)
    assert architecture.genome == Genome.from_json(stored("genome", 1))
    assert architecture.hash == stored("architecture", 1)["hash"]
    assert Architecture.from_json(written(architecture), space) == architecture
    with pytest.raises(ValueError, match="known by its network|unknown|nothing stands"):
        Architecture.from_json({**stored("architecture", 1), "hash": "0" * 64}, space)


def test_a_genome_of_version_1_is_read():
    genome = Genome.from_json(stored("genome", 1))
    assert genome["body.1.times"] == 4
    assert written(genome) == stored("genome", 1)


@pytest.mark.parametrize("kind", versions.CURRENT)
def test_every_older_version_has_a_stored_file_and_an_upgrade(kind):
    for version in range(1, versions.CURRENT[kind]):
        assert stored(kind, version)["schema_version"] == version
        assert versions.upgraded(stored(kind, version), kind)["schema_version"] == versions.CURRENT[kind]


@pytest.mark.parametrize("kind", versions.CURRENT)
@pytest.mark.parametrize("version,text", [(99, "schema_version .*: got 99; update bodyplan"), (None, "got None"),
                                          (True, "got True"), (0, "got 0"), ("1", "got '1'")])
def test_unknown_versions_are_refused(kind, version, text):
    with pytest.raises(ValueError, match=text):
        versions.upgraded({**stored(kind, 1), "schema_version": version}, kind)


# -- JSON Schema -------------------------------------------------------------------------------------------------------


def validator(kind):
    jsonschema = pytest.importorskip("jsonschema")
    from referencing import Registry, Resource

    schemas = [json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")]
    registry = Registry().with_resources([(s["$id"], Resource.from_contents(s)) for s in schemas])
    schema = next(s for s in schemas if s["$id"] == f"bodyplan:{kind}")
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema, registry=registry)


@pytest.mark.parametrize("name", [*SPACES, *BODIES])
def test_what_is_written_agrees_with_the_schemas(name):
    space = SPACES[name] if name in SPACES else make(width=32, body=BODIES[name])
    architecture = space.sample(1)
    validator("space").validate(written(space))
    validator("genome").validate(written(architecture.genome))
    validator("architecture").validate(written(architecture))


def test_declared_constraints_agree_with_the_schema():
    from bodyplan.space.constraints import cost

    space = bp.Space(embed=bp.TokenEmbedding(vocab=8), width=choice(16, 32), body=MLP, head=bp.LanguageHead(tied=True),
                     constraints=[cost("parameters") <= 5e6])
    validator("space").validate(written(space))
    assert bp.Space.from_json(written(space)).hash == space.hash


@pytest.mark.parametrize("kind,wrong", [
    ("genome", {"schema_version": 2}), ("genome", {"decisions": {"width": "wide"}}), ("genome", {"more": 1}),
    ("architecture", {"hash": "short"}), ("architecture", {"genome": {}}), ("space", {"schema_version": 1}),
    ("space", {"definition": {}})])
def test_the_schemas_refuse_what_is_wrong(kind, wrong):
    space = SPACES["hybrid"]
    right = {"genome": space.sample(0).genome, "architecture": space.sample(0), "space": space}[kind]
    assert not validator(kind).is_valid({**written(right), **wrong})


@pytest.mark.parametrize("item", [{"Choice": {"candidates": []}}, {"Choice": {}}, {"Integer": {"low": 1, "high": 2.5}},
                                  {"Repeat": {"item": 1, "times": 1, "keep": "last"}}, {"A": {}, "B": {}}, {"A": 1}])
def test_the_schema_of_a_space_refuses_words_that_are_wrong(item):
    space = written(SPACES["fixed depth"])
    space["definition"]["width"] = item
    assert not validator("space").is_valid(space)


def test_schemas_name_every_word_and_the_present_versions():
    schemas = {path.name.split(".")[0]: json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")}
    assert {kind: s["properties"]["schema_version"]["const"] for kind, s in schemas.items()} == versions.CURRENT
    words = {"Tied", "Rule", "Symbol", *serialise.WORDS} - {"Once", "Loop"}
    assert words <= schemas["space"]["$defs"].keys()


def test_schemas_are_packaged():
    import tomllib

    package = tomllib.loads((Path(bp.__file__).parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "schema/*.json" in package["bodyplan.space"]
