"""Where a text stops: examples by hand, and the promise that more text never changes what was cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fasttrace.models.stops import cut

EXAMPLES = [
    (" Paris, France.\nIt is", " Paris, France.", " Paris, France."),
    (" Paris. It is", " Paris. It is", " Paris."),
    ("\n\n Paris! Yes\nNo", "\n\n Paris! Yes", "\n\n Paris!"),
    (" Paris?\r\nNo", " Paris?", " Paris?"),
    (" J. Smith of the U.S. army. He", " J. Smith of the U.S. army. He", " J. Smith of the U.S. army."),
    (" Dr. No met Mr. T. Then", " Dr. No met Mr. T. Then", " Dr. No met Mr. T. Then"),
    (" 3.5 million. Not more", " 3.5 million. Not more", " 3.5 million."),
    (' "Paris." she said', ' "Paris." she said', ' "Paris."'),
    (" (in Paris.) And", " (in Paris.) And", " (in Paris.)"),
    (" example.com is", " example.com is", " example.com is"),
    ("巴黎。然后", "巴黎。然后", "巴黎。"),
    (" no end", " no end", " no end"),
    (" ends here.", " ends here.", " ends here."),
    ("", "", ""),
    (" \n ", " \n ", " \n "),
]


@pytest.mark.parametrize(("text", "line", "sentence"), EXAMPLES)
def test_a_text_is_cut_at_its_first_line_and_sentence(text, line, sentence):
    assert cut(text, "line") == line
    assert cut(text, "sentence") == sentence
    assert cut(text, None) == text


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        (" Mt. Everest. It is", "Mt. Everest", " Mt. Everest."),
        (" mt. everest is high. It", "Mt. Everest", " mt. everest is high."),
        (" Mt. Blanc. It", "Mt. Everest", " Mt. Blanc."),
        (" Yahoo! Japan", "Yahoo! Japan", " Yahoo! Japan"),
        (" Yahoo! It. No", "Yahoo!", " Yahoo!"),
        (" Paris. It", "Yahoo! Japan", " Paris."),
        (" 你好。吗。", "你好。吗", " 你好。吗。"),
    ],
)
def test_no_sentence_ends_inside_an_answer(text, answer, found):
    assert cut(text, "sentence", ["Rome", answer]) == found


@pytest.mark.parametrize("stop", ["line", "sentence"])
@given(
    text=st.text(alphabet="ab1DrMS.?!。」\")' \n\r", max_size=20),
    more=st.text(alphabet='a.。」" \n', max_size=5),
    answer=st.text(alphabet="ab1.? ", max_size=6),
)
def test_what_is_cut_does_not_depend_on_what_follows(stop, text, more, answer):
    found = cut(text, stop, [answer])
    assert text.startswith(found)
    if len(found) < len(text):
        assert cut(text + more, stop, [answer]) == found
