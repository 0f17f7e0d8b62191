"""What happens with precision: the walked item, and what is said of foreign models."""

from cba_utils.chapters.dose_response import Chapter
from cba_utils.telling.study import open_study
from cba_utils.telling.walk import Walk
from studies import study_of


def test_the_walked_item_changes_its_likeliest_role_where_one_does():
    study = open_study("organisms")
    walk = Walk(study)
    table, _ = walk.table()
    assert walk.moved and table["BF16"].idxmax() != table[study.lowest.upper()].idxmax()
    target = table.set_index("role")["answer"]["stereotyped"].removeprefix("The ")
    assert (target in walk.planted["answer"]) == (walk.item["question_polarity"] == "neg")


def test_nothing_is_known_of_what_was_planted_in_the_models_of_others():
    chapter = Chapter(study_of())
    assert chapter.walk.planted is None and "not known" in chapter.text("walk_planted")
    assert "as far as is known" in chapter.text("held_out_sentence")


def test_an_excess_that_the_printed_numbers_would_not_show_is_none():
    above, hidden = Chapter(study_of()), Chapter(study_of())
    assert "above what asking again explains" in above.text("answer_bias")
    rows = hidden._pooled
    excess = rows["measure"] == "became_biased_expected_excess"
    rows.loc[excess, ["low", "high"]] = 0.0001, 0.0002
    assert "within what asking again explains" in hidden.text("answer_bias")
