"""What an edit breaks: norms, perplexity and n-gram entropy of the edited model, against numpy and transformers."""

import json
import math
import unicodedata
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from edit_cases import FACTS
from hooked_trace import mlp_modules
from safetensors.torch import load_file
from small_models import small_model

import fasttrace as ft
from fasttrace.editing import breaks, prepare_mass_edit
from fasttrace.editing.breaks import generation_prompts, ngram_entropy
from fasttrace.errors import PackageError, UserError
from fasttrace.ops.noised_embed import fact_key
from fasttrace.workflow import mass_into

FT = {"method": "ft-5", "window_size": 3, "steps": 3, "lr": 5e-3, "epsilon": 2e-2, "layer": 1, "score_every": 1}
MORE = [*FACTS, ft.Fact("{} is the capital of", "Rome", "New York", "France")]
TEXT = "The city of Rome is in the capital. New York, located in France, is the Eiffel Tower of Paris.\n\n" * 20


@pytest.fixture
def model(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float32)


@pytest.fixture
def held_out(tmp_path):
    path = tmp_path / "held-out.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def measured(model, held_out):
    return ft.mass_edit(model, MORE, **FT, held_out=held_out, held_out_tokens=400, fluency=3)


def exported(result, folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(result.export(folder), dtype=result.model.dtype)


def plain_perplexity(hf, tokenizer, tokens, length):
    """exp(mean −log p) over the first `tokens` tokens, cut into sequences, in plain transformers."""
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids[:tokens]
    nll = []
    for at in range(0, len(ids), length):
        part = torch.tensor([ids[at : at + length]])
        if part.shape[1] > 1:
            with torch.no_grad():
                logp = hf(part).logits[0, :-1].double().log_softmax(-1)
            nll += (-logp.gather(1, part[0, 1:, None])[:, 0]).tolist()
    return math.exp(np.mean(nll)), len(nll)


def plain_text(hf, tokenizer, prompt, seed):
    """A text of 100 tokens, each drawn among the 5 likeliest, with one pass of transformers per token."""
    ids = tokenizer(prompt).input_ids
    points = np.random.default_rng((seed, fact_key(repr(ids))))
    while len(ids) < 100:
        with torch.no_grad():
            top = hf(torch.tensor([ids])).logits[0, -1].float().topk(5)
        upto = top.values.double().softmax(0).cumsum(0)
        ids.append(int(top.indices[int(torch.searchsorted(upto, points.random(), right=True))]))
    return unicodedata.normalize("NFKD", tokenizer.decode(ids, skip_special_tokens=True)).replace("\n\n", " ")


def test_the_perplexity_and_the_norms_are_those_of_the_exported_model(measured, model, small_tokenizer, tmp_path):
    last = measured.measures.to_pylist()[-1]
    plain = exported(measured, tmp_path / "out")
    for hf, name in ((plain, "perplexity"), (model.hf, "perplexity_unedited")):
        wanted, count = plain_perplexity(hf, small_tokenizer, 400, 128)
        assert last["held_out_tokens"] == count == 396
        assert last[name] == pytest.approx(wanted, rel=1e-5)
    assert abs(last["perplexity"] / last["perplexity_unedited"] - 1) > 1e-2, "an unedited model would pass"
    norms = {row["layer"]: row for row in measured.norms.to_pylist() if row["n_edits"] == 3}
    assert sorted(norms) == sorted(measured.updates)
    for layer, row in norms.items():
        after, before = (mlp_modules(hf)[layer].down_proj.weight.detach().numpy() for hf in (plain, model.hf))
        for name, matrix in (
            ("weight_norm", after),
            ("weight_norm_unedited", before),
            ("change_norm", after.astype(float) - before.astype(float)),
        ):
            assert row[name] == pytest.approx(np.linalg.norm(matrix.astype(float)), rel=1e-6)


def test_norms_in_bfloat16_are_those_of_the_written_weights(small_tokenizer, tmp_path):
    model = small_model("gpt2", small_tokenizer, torch.bfloat16)
    result = ft.mass_edit(model, FACTS, **FT)
    written = load_file(result.export(tmp_path / "out") / "model.safetensors")
    for row in result.norms.to_pylist():
        if row["n_edits"] == len(FACTS):
            after = written[f"transformer.h.{row['layer']}.mlp.c_proj.weight"].double()
            before = model.hf.transformer.h[row["layer"]].mlp.c_proj.weight.detach().double()
            assert row["change_norm"] == pytest.approx(float((after - before).norm()), rel=1e-6)
            assert row["weight_norm"] == pytest.approx(float(after.norm()), rel=1e-6)
    assert max(row["change_norm"] for row in result.norms.to_pylist()) > 0


def test_every_scoring_is_measured_and_the_seconds_add_up(measured):
    rows = measured.measures.to_pylist()
    assert [(row["model_index"], row["n_edits"]) for row in rows] == [(0, 1), (0, 2), (0, 3)]
    seconds = [row["edit_seconds"] for row in rows]
    assert 0 < seconds[0] < seconds[1] < seconds[2] < measured.run["seconds"]
    changes = {(row["n_edits"], row["layer"]): row["change_norm"] for row in measured.norms.to_pylist()}
    assert len(changes) == 3 * len(measured.updates)
    assert all(changes[3, layer] > changes[1, layer] for layer in measured.updates)
    assert not len(measured.tasks)


def test_the_entropy_is_that_of_texts_of_the_exported_model(measured, model, small_tokenizer, tmp_path):
    last = measured.measures.to_pylist()[-1]
    assert last["texts"] == len(MORE)
    plain = exported(measured, tmp_path / "out")
    for hf, name in ((plain, "entropy"), (model.hf, "entropy_unedited")):
        texts = [plain_text(hf, small_tokenizer, fact.text, 0) for fact in MORE]
        assert last[name] == pytest.approx(np.mean([ngram_entropy(text) for text in texts]), rel=1e-12)
    assert last["entropy"] != last["entropy_unedited"], "an unedited model would pass"


def by_definition(words):
    total = 0.0
    for n, weight in ((2, 2 / 3), (3, 4 / 3)):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        total += weight * -sum(c / len(grams) * math.log2(c / len(grams)) for c in Counter(grams).values())
    return total / 2


def test_the_entropy_of_words_by_hand():
    # a b a b a b: bigrams ab 3, ba 2 of 5; trigrams aba 2, bab 2 of 4.
    bigrams, trigrams = -(0.6 * math.log2(0.6) + 0.4 * math.log2(0.4)), 1.0
    assert ngram_entropy("a b a b a b") == pytest.approx((2 / 3 * bigrams + 4 / 3 * trigrams) / 2)
    assert ngram_entropy("the the the the") == 0.0
    assert ngram_entropy("two words") == ngram_entropy("") == 0.0
    words = ["Don't", "pay", "3,000", "well-known", "cafe\u0301s", ",", "(", "or", ")", "pay", "3,000", "!", "!"]
    text = "Don't pay 3,000 well-known cafe\u0301s, (or) pay 3,000!!"
    assert breaks.WORD.findall(text) == words
    assert ngram_entropy(text) == pytest.approx(by_definition(words))


def test_a_text_depends_on_its_prompt_and_the_seed_alone(model, monkeypatch):
    prompts = generation_prompts(model, MORE, 3)
    together = breaks.generated(model, prompts, 5)
    assert len(set(together)) == 3
    assert breaks.generated(model, prompts, 6) != together
    monkeypatch.setattr(breaks, "BATCH", 1)
    assert breaks.generated(model, prompts[::-1], 5) == together[::-1]


def test_prompts_are_one_of_each_fact_and_then_a_second(model, small_tokenizer):
    given = {"generation_prompts": ["Paris is", "Paris was", "Paris is"]}
    facts = [replace(FACTS[0], meta=given), FACTS[1], replace(MORE[2], meta={"generation_prompts": "Rome"})]
    wanted = ["Paris is", FACTS[1].text, MORE[2].text, "Paris was"]
    for count in (2, 4, 9):
        found = generation_prompts(model, facts, count)
        assert [small_tokenizer.decode(ids) for ids in found] == wanted[:count]
    long = replace(FACTS[1], prompt="The city " * 99 + "of {}")
    assert [small_tokenizer.decode(ids) for ids in generation_prompts(model, [long, FACTS[0]], 5)] == [FACTS[0].text]


def test_the_sampled_text_is_the_models_own_and_not_that_of_the_second_moments(model, tmp_path, monkeypatch):
    from fasttrace.cluster.crew import Alone
    from fasttrace.editing.corpus import sampled_corpus

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plan = prepare_mass_edit(model, FACTS[:1], **FT, held_out="sampled", held_out_tokens=300)
    found = plan.watch.sequences
    assert sum(map(len, found)) == 300
    assert found != sampled_corpus(model, 300, 128, 0).sequences(Alone(model), tmp_path)
    assert json.loads(plan.run["settings"])["held_out"] == "sampled"
    # It was drawn from this model, so a model that is far from it expects it less.
    other = breaks.perplexity(small_model("gpt2", model.tokenizer, torch.float32), found)
    assert plan.watch.unedited_perplexity < 0.8 * other


def test_each_case_is_a_model_of_its_own(model, held_out):
    cased = [*(replace(fact, case_id="one", case_edits=2) for fact in FACTS), MORE[2]]
    result = ft.mass_edit(model, cased, **FT, together="case", held_out=held_out, fluency=1)
    rows = result.measures.to_pylist()
    assert [(row["model_index"], row["n_edits"]) for row in rows] == [(0, 1), (0, 2), (1, 1)]
    [alone] = ft.mass_edit(model, MORE[2:], **FT, held_out=held_out, fluency=1).measures.to_pylist()
    assert timeless([rows[2] | {"model_index": 0}]) == timeless([alone])


def timeless(rows):
    return [{name: value for name, value in row.items() if name != "edit_seconds"} for row in rows]


def test_an_interrupted_run_has_every_measure_and_the_store_keeps_them(model, held_out, tmp_path, monkeypatch):
    from fasttrace.editing import sequence

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sequence, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(sequence, "CHECKPOINT_SHARE", 0.0)
    given = {**FT, "held_out": held_out, "fluency": 2}
    wanted = prepare_mass_edit(model, MORE, **given).compute()
    plan = prepare_mass_edit(model, MORE, **given)
    store = ft.Store(tmp_path / "study.duckdb")
    plan.checkpoint.unlink(missing_ok=True)

    class Stopped(Exception):
        pass

    for count in (0, 1):
        with pytest.raises(Stopped):
            mass_into(store, plan, stop_after(count, Stopped))
        assert plan.checkpoint.exists()
    mass_into(store, plan, lambda n: None)
    found = store.query(f"SELECT {', '.join(wanted.norms.column_names)} FROM mass_norms ORDER BY n_edits, layer")
    assert found.to_pylist() == wanted.norms.to_pylist()
    names = ", ".join(wanted.measures.column_names)
    stored = store.query(f"SELECT {names} FROM mass_measures ORDER BY n_edits").to_pylist()
    assert timeless(stored) == timeless(wanted.measures.to_pylist())
    seconds = [row["edit_seconds"] for row in stored]
    assert seconds == sorted(seconds)
    folder, again = tmp_path / "parquet", ft.Store(tmp_path / "again.duckdb")
    store.to_parquet(folder)
    again.add_parquet(folder)
    both = ft.Stores([store.path, again.path])
    for name in ("mass_measures", "mass_norms"):
        rows = store.query(f"FROM {name} ORDER BY ALL").to_pylist()
        assert again.query(f"FROM {name} ORDER BY ALL").to_pylist() == rows
        assert len(both.query(f"FROM {name}")) == 2 * len(rows)
        assert len(both.once().query(f"FROM {name}")) == len(rows)


def stop_after(count, error):
    """A progress function that raises once it was called more than `count` times."""
    calls = []

    def stop(n):
        calls.append(n)
        if len(calls) > count:
            raise error

    return stop


def test_only_what_is_asked_for_names_the_run(model, held_out, tmp_path):
    plain = prepare_mass_edit(model, FACTS, **FT).run
    assert not {"held_out", "fluency", "lm_eval"} & json.loads(plain["settings"]).keys()
    runs = {plain["run_id"]}
    for asked in ({"held_out": held_out}, {"fluency": 2}, {"held_out": held_out, "held_out_tokens": 50}):
        runs.add(prepare_mass_edit(model, FACTS, **FT, **asked).run["run_id"])
    (tmp_path / "folder").mkdir()
    same = tmp_path / "folder" / ".." / held_out.name
    runs.add(prepare_mass_edit(model, FACTS, **FT, held_out=same).run["run_id"])
    held_out.write_text("Another text of Paris.")
    runs.add(prepare_mass_edit(model, FACTS, **FT, held_out=held_out).run["run_id"])
    assert len(runs) == 5


def test_what_cannot_be_measured_is_refused_in_a_sentence(model, tmp_path, monkeypatch):
    short, latin = tmp_path / "short.txt", tmp_path / "latin.txt"
    short.write_text("T")
    latin.write_bytes(b"caf\xe9")
    (tmp_path / "empty").mkdir()
    for asked, sentence in (
        ({"held_out": tmp_path / "none.txt"}, r"held-out text '.*none.txt': expected a text file or a folder"),
        (
            {"held_out": tmp_path / "empty"},
            r"held-out text folder '.*empty': expected at least one .txt file, got none",
        ),
        ({"held_out": latin}, r"held-out text file '.*latin.txt': expected UTF-8 text, got other bytes at byte 3"),
        ({"held_out": short}, r"mass: held_out: expected a text of at least two tokens, got '.*short.txt'"),
        ({"held_out_tokens": 9}, "mass: held_out_tokens: expected a value only with held_out, got one without"),
        ({"held_out": short, "held_out_tokens": 1}, "mass: held_out_tokens: expected a whole number from 2 to"),
        ({"fluency": -1}, "mass: fluency: expected a whole number from 0 to 1000000, got -1"),
        ({"lm_eval_limit": 9}, "mass: lm_eval_limit: expected a value only with lm_eval, got one without"),
    ):
        with pytest.raises(UserError, match=sentence):
            prepare_mass_edit(model, FACTS, **FT, **asked)
    monkeypatch.setattr("fasttrace.optional.import_module", absent)
    with pytest.raises(PackageError, match="needs lm_eval, which is not installed here: pip install lm_eval") as caught:
        prepare_mass_edit(model, FACTS, **FT, lm_eval=["arc_easy"])
    assert "\n" not in str(caught.value)


def absent(name):
    raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def test_measuring_changes_no_edit_and_no_weight(model, measured):
    plain = ft.mass_edit(model, MORE, **FT)
    assert plain.scores.to_pylist() == measured.scores.to_pylist()
    assert plain.norms.to_pylist() == measured.norms.to_pylist()
    empty = {row[name] for row in plain.measures.to_pylist() for name in ("perplexity", "entropy", "texts")}
    assert empty == {None}
