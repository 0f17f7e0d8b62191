"""What happens with precision: the walked item, and what is said of foreign models."""

from cba_utils.chapters.dose_response import Chapter
from cba_utils.telling.numbers import percent
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
    assert "explains at Q4 and Q3" in above.text("finding_gained")
    rows = hidden.noise.checkpoints
    excess = rows["measure"] == "became_biased_expected_excess"
    rows.loc[excess, ["low", "high"]] = 0.0001, 0.0002
    assert "no more items are shown to have gained" in hidden.text("finding_gained")


def test_the_models_of_others_are_named_on_the_first_page_and_called_no_toys():
    study = study_of()
    study.provenance = study.provenance.assign(
        **{"identity.parameters.model": "models/mine", "identity.parameters.items": "bbq"}
    )
    said = Chapter(study).text("who")
    assert "toys" not in said and "simulated" in said


def test_every_number_of_the_first_page_is_in_its_table():
    chapter = Chapter(study_of())
    table, formats = chapter.table_first()
    shown = " ".join(formats["gained"](row) for row in table["gained"])
    for found in chapter.noise.gained.values():
        for one in found:
            assert percent(one.row["estimate"]) in shown
