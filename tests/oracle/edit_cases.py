"""Facts and contexts that every test of editing on small random models shares."""

import fasttrace as ft

FACTS = [
    ft.Fact(
        prompt="The {} is located in the city of",
        subject="Eiffel Tower",
        target_true="Paris",
        target_false="Rome",
        paraphrases=("Eiffel Tower is in the city of", "of Eiffel Tower, located in"),
        neighborhood=("The capital is located in the city of", "The France is located in the city of"),
    ),
    ft.Fact(
        prompt="{} is the capital of",
        subject="Paris",
        target_true="France",
        target_false="New York",
        paraphrases=("Paris, the capital of",),
        neighborhood=("Rome is the capital of",),
    ),
]
CONTEXTS = ["{}", "The city. {}", "of New York is the. {}"]
