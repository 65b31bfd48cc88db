"""The prompts on which an edit is scored."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from fasttrace.editing.floors import floored_means
from fasttrace.editing.problems import PROBLEMS
from fasttrace.editing.scores import scored_prompts
from fasttrace.facts import Fact, encode_fact


def llama_like():
    """A tokenizer that writes spaces as ▁. The ▁ added before the text has the offsets of the first character."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "▁", "Anna", "▁is", "▁a", "▁old", "▁So"]
    pieces = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=0))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="<unk>")


def test_an_added_space_is_not_part_of_the_subject():
    tokenizer = llama_like()
    fact = Fact("{} is", "Anna", "old", paraphrases=("Anna is a", "So Anna is", "So is a"))
    encoded = encode_fact(tokenizer, fact)
    assert tokenizer.convert_ids_to_tokens(list(encoded.ids)) == ["▁", "Anna", "▁is"]
    model = SimpleNamespace(tokenizer=tokenizer, check_length=lambda *_: None)
    rows = scored_prompts(model, encoded, PROBLEMS["fact-forcing"])
    places = [row.subject and (row.subject.begin, row.subject.end) for row in rows]
    assert places == [(1, 2), (1, 2), (2, 3), None]


def test_floored_means_count_each_score_below_0():
    columns = ("rewrite", "paraphrase", "neighborhood", "overall")
    plain = pa.table(dict(zip(columns, ([0.5, 1.0], [0.2, None], [1.0, 1.0], [0.6, None]), strict=True)))
    assert floored_means([plain]) == {}
    below = pa.table(dict(zip(columns, ([-3.0, 1.0], [-0.5, 0.5], [0.5, 1.0], [-1.0, 2.5 / 3]), strict=True)))
    assert floored_means([plain, below]) == {
        "rewrite_below_0": [0, 1],
        "paraphrase_below_0": [0, 1],
        "overall_below_0": [0, 1],
        "rewrite_floored": [0.75, 0.5],
        "paraphrase_floored": [0.2, 0.25],
        "overall_floored": pytest.approx([1.7 / 3, (0.5 / 3 + 2.5 / 3) / 2]),
    }
