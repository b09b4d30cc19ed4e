"""Made-up records in the schema of public data sets, each with what its task makes of it.

`ROWS` holds, by task: the record, the right answer, and the choices if there are any.
"""

from collections.abc import Mapping
from typing import Any, Final

YMN: Final = ("yes", "it is impossible to say", "no")
YES_NO: Final = ("yes", "no")
NO_YES: Final = ("no", "yes")
FEELINGS: Final = ("negative", "positive")

Row = tuple[Mapping[str, Any], str, tuple[str, ...]]

_PAIR: Final = {"premise": "A man plays.", "hypothesis": "He rests.", "idx": 3}
_SENTENCES: Final = {"sentence1": "It rained.", "sentence2": "It was wet.", "idx": 0}
_OPTIONS: Final = {"text": ["iron", "air", "wood"], "label": ["A", "B", "C"]}
_NUMBERED: Final = {"text": ["iron", "air", "wood"], "label": ["1", "2", "3"]}
_ENDINGS: Final = ["He sleeps.", "He pours it.", "It snows.", "She sings."]
_HELLASWAG: Final = {
    "ind": 4,
    "activity_label": "Making tea",
    "ctx_a": "A man boils water.",
    "ctx_b": "he",
    "ctx": "A man boils water. he",
    "endings": _ENDINGS,
    "source_id": "x~1",
    "split": "train",
    "split_type": "indomain",
    "label": "1",
}
_WINOGRANDE: Final = {
    "sentence": "The cup broke on the floor as the _ was hard.",
    "option1": "cup",
    "option2": "floor",
    "answer": "2",
}
_PIQA: Final = {"goal": "dry a shirt", "sol1": "Hang it up.", "sol2": "Wash it.", "label": 0}
_BOOLQ: Final = {"question": "is tea a drink", "answer": True, "passage": "Tea is a drink."}
_COPA: Final = {
    "premise": "The cup broke.",
    "choice1": "It fell.",
    "choice2": "It was blue.",
    "question": "cause",
    "idx": 1,
    "label": 0,
}
_SQUAD: Final = {
    "id": "56",
    "title": "Tea",
    "context": "Tea comes from China.",
    "question": "Where does tea come from?",
    "answers": {"text": ["China", "from China"], "answer_start": [15, 10]},
}
_WINOGRAD: Final = {
    "text": "The cup did not fit into the box because it was too large.",
    "pronoun": "it",
    "pronoun_loc": 41,
    "quote": "it was too large",
    "quote_loc": 41,
    "options": ["The cup", "The box"],
    "label": 0,
    "source": "(made up)",
}

ROWS: Final[Mapping[str, Row]] = {
    **{
        f"anli_r{number}": ({**_PAIR, "uid": "u", "reason": "", "label": 2}, "no", YMN)
        for number in (1, 2, 3)
    },
    "cb": ({**_PAIR, "label": 1}, "no", ("yes", "no", "it is impossible to say")),
    "mnli": ({**_PAIR, "label": 0}, "yes", YMN),
    "qnli": (
        {"question": "What is tea?", "sentence": "Tea is a drink.", "label": 0, "idx": 1},
        "yes",
        YES_NO,
    ),
    "rte": ({**_SENTENCES, "label": 1}, "no", YES_NO),
    "snli": ({**_PAIR, "label": 1}, "it is impossible to say", YMN),
    "wnli": ({**_SENTENCES, "label": 1}, "yes", NO_YES),
    "imdb": ({"text": "Dull.", "label": 0}, "negative", FEELINGS),
    "sst2": ({"sentence": "a joy", "label": 1, "idx": 7}, "positive", FEELINGS),
    "sentiment140": (
        {"text": "@you yes!", "date": "Mon", "user": "u", "sentiment": 4, "query": "NO_QUERY"},
        "positive",
        FEELINGS,
    ),
    "yelp": ({"text": "Cold soup.", "label": 0}, "negative", FEELINGS),
    "qqp": (
        {"question1": "What is tea?", "question2": "What's tea?", "label": 1, "idx": 2},
        "yes",
        NO_YES,
    ),
    "mrpc": ({**_SENTENCES, "label": 0}, "no", NO_YES),
    "paws": ({**_SENTENCES, "id": 9, "label": 1}, "yes", NO_YES),
    "dpr": (
        {
            "sentence": "The cup hit the box, and it broke.",
            "pronoun": "it",
            "candidates": ["The cup", "the box"],
            "label": 1,
        },
        "the box",
        ("The cup", "the box"),
    ),
    "winogrande": (_WINOGRANDE, "floor", ("cup", "floor")),
    "wsc": (
        {
            "text": "The cup broke because it fell.",
            "span1_index": 0,
            "span2_index": 4,
            "span1_text": "The cup",
            "span2_text": "it",
            "idx": 0,
            "label": 1,
        },
        "yes",
        NO_YES,
    ),
    "hellaswag": (_HELLASWAG, "He pours it.", tuple(_ENDINGS)),
    "piqa": (_PIQA, "Hang it up.", ("Hang it up.", "Wash it.")),
    "copa": (_COPA, "It fell.", ("It fell.", "It was blue.")),
    "drop": (
        {
            "section_id": "s",
            "query_id": "q",
            "passage": "Two cups and three pots.",
            "question": "How many things?",
            "answers_spans": {"spans": ["5", "five"], "types": ["number", "span"]},
        },
        "5",
        (),
    ),
    "squad_v1": (_SQUAD, "China", ()),
    "squad_v2": ({**_SQUAD, "answers": {"text": [], "answer_start": []}}, "unanswerable", ()),
    "obqa": (
        {"id": "7-1", "question_stem": "Which rusts?", "choices": _OPTIONS, "answerKey": "A"},
        "iron",
        ("iron", "air", "wood"),
    ),
    "boolq": (_BOOLQ, "yes", YES_NO),
    "cola": (
        {"sentence": "Him sleeps.", "label": 0, "idx": 0},
        "unacceptable",
        ("unacceptable", "acceptable"),
    ),
    "wic": (
        {**_SENTENCES, "word": "it", "start1": 0, "start2": 0, "end1": 2, "end2": 2, "label": 0},
        "no",
        NO_YES,
    ),
    "trec": (
        {"text": "Who drinks tea ?", "coarse_label": 3, "fine_label": 28},
        "person",
        ("abbreviation", "entity", "description", "person", "location", "number"),
    ),
    "arc_easy": (
        {"id": "M1", "question": "Which rusts?", "choices": _NUMBERED, "answerKey": "1"},
        "iron",
        ("iron", "air", "wood"),
    ),
    "nq": ({"question": "who drank tea", "answer": ["The queen", "a queen"]}, "The queen", ()),
    "common_gen": (
        {"concept_set_idx": 0, "concepts": ["cup", "tea"], "target": "Tea fills a cup."},
        "Tea fills a cup.",
        (),
    ),
    "e2e_nlg": (
        {"meaning_representation": "name[Tea], food[cake]", "human_reference": "Tea has cake."},
        "Tea has cake.",
        (),
    ),
    "aeslc": ({"email_body": "Shall we have tea?", "subject_line": "Tea"}, "Tea", ()),
    "samsum": (
        {"id": "1", "dialogue": "A: Tea?\r\nB: Yes.", "summary": "A and B."},
        "A and B.",
        (),
    ),
    "xsum": ({"document": "Tea is hot.", "summary": "On tea.", "id": "2"}, "On tea.", ()),
    "storycloze_in_context": (
        {
            "story_id": "s",
            **{f"input_sentence_{number}": f"Sentence {number}." for number in (1, 2, 3, 4)},
            "sentence_quiz1": "He left.",
            "sentence_quiz2": "He stayed.",
            "answer_right_ending": 2,
        },
        "He stayed.",
        ("He left.", "He stayed."),
    ),
    "hellaswag_in_context": (_HELLASWAG, "He pours it.", tuple(_ENDINGS)),
    "winograd_in_context": (_WINOGRAD, "was too large.", ("was too large.", "was too large.")),
    "winogrande_in_context": (_WINOGRANDE, "was hard.", ("was hard.", "was hard.")),
    **{
        f"arc_{which}_in_context": (
            {"id": "M1", "question": "Which rusts?", "choices": _OPTIONS, "answerKey": "A"},
            "iron",
            ("iron", "air", "wood"),
        )
        for which in ("easy", "challenge")
    },
    "piqa_in_context": (_PIQA, "Hang it up.", ("Hang it up.", "Wash it.")),
    "boolq_in_context": (_BOOLQ, "yes", YES_NO),
    "copa_in_context": (_COPA, "It fell.", ("It fell.", "It was blue.")),
}

UNLABELLED: Final[Mapping[str, Mapping[str, Any]]] = {
    "snli": {**_PAIR, "label": -1},
    "sentiment140": {**ROWS["sentiment140"][0], "sentiment": 2},
    "hellaswag": {**_HELLASWAG, "label": ""},
    "winogrande": {**_WINOGRANDE, "answer": ""},
    "copa": {**_COPA, "label": -1},
}
"""Records that do not count."""
