"""Which columns say what happened to a patient: nothing is guessed, and what is odd is named."""

import numpy as np
import pandas as pd
import pytest

from mil_zoo import InputError
from mil_zoo.noted import note_of, undefined, with_unit_of_time
from mil_zoo.tasks import Survival, create_task
from mil_zoo.tasks.outcome_columns import check_direction


def table(**columns):
    n = len(next(iter(columns.values())))
    return pd.DataFrame({"slide_id": [f"s{i}" for i in range(n)], **columns}, dtype=object)


def read(task, rows):
    return task.settled(list(rows)).targets(rows)


@pytest.mark.parametrize("column", ["censorship", "os_censored", "c", "Censor"])
def test_a_censorship_column_is_no_event_column(column):
    with pytest.raises(InputError, match=f"--event {column}: .*pass --censorship {column}.*--event-as-named"):
        Survival(event=column)
    assert Survival(event=column, event_as_named=True).event == column
    assert Survival(censorship=column).censorship == column


@pytest.mark.parametrize("column", ["event", "os_event", "e", "dead", "status", "vital_status", "Event"])
def test_an_event_column_is_no_censorship_column(column):
    with pytest.raises(InputError, match=f"--censorship {column}: .*pass --event {column}"):
        Survival(censorship=column)
    assert Survival(event=column).event == column


def test_other_names_are_taken_as_they_are_given():
    for column in ("died", "os", "x", "deceased"):
        check_direction(column, as_event=True)
        check_direction(column, as_event=False)


def test_event_and_censorship_are_one_or_the_other():
    with pytest.raises(InputError, match="one of --event died and --censorship lost, not both"):
        Survival(event="died", censorship="lost")


def test_a_flipped_column_gives_the_opposite_event():
    rows = table(os_days=["5", "7"], censorship=["0", "1"])
    assert read(Survival(time="os_days", censorship="censorship"), rows)[:, 1].tolist() == [1, 0]
    flipped = Survival(time="os_days", event="censorship", event_as_named=True)
    assert read(flipped, rows)[:, 1].tolist() == [0, 1]


@pytest.mark.parametrize("text", ["2", "-1", "Unknown", "0.5", "yes"])
def test_an_odd_event_is_an_error_that_names_the_row(text):
    rows = table(time_days=["5", "7", "9"], event=["1", text, "0"])
    with pytest.raises(InputError, match=f"'event' takes 0 and 1.*'s1' '{text}'.*--event-values"):
        read(Survival(), rows)


def test_zero_one_true_false_are_read():
    rows = table(time_days=list("123456"), event=["1", "0", "1.0", "0.0", "True", "false"])
    assert read(Survival(), rows)[:, 1].tolist() == [1, 0, 1, 0, 1, 0]


def test_texts_mean_what_event_values_say():
    rows = table(os_days=["5", "7"], vital_status=["died", "alive"])
    task = Survival(time="os_days", event="vital_status", event_values=("died=1", "alive=0"))
    assert read(task, rows)[:, 1].tolist() == [1, 0]
    with pytest.raises(InputError, match=r"takes died, alive, not .*'s1' 'Alive'"):
        read(task, rows.assign(vital_status=["died", "Alive"]))
    with pytest.raises(InputError, match="died=1"):
        Survival(event="vital_status", event_values=("died=2",))


def test_the_unit_is_in_the_name_or_given():
    for unit in ("days", "months", "years"):
        assert Survival(time=f"os_{unit}", event="e").settled(["e"]).target_columns == (f"time_{unit}", "event")
    with pytest.raises(InputError, match="the unit of the times in 'os' is unknown; pass --time-unit"):
        Survival(time="os").settled(["os", "event"])
    assert Survival(time="os", unit="months").settled(["os", "event"]).unit == "months"
    with pytest.raises(InputError, match="'os_days' is named for days and --time-unit says months"):
        Survival(time="os_days", unit="months")


def test_columns_called_time_and_event_need_no_naming():
    assert Survival.recognises(["slide_id", "time_months", "event"])
    assert not Survival.recognises(["slide_id", "os_months", "os_event"])
    assert not Survival.recognises(["slide_id", "time_days", "time_months", "event"])
    settled = create_task("survival").settled(["slide_id", "time_months", "event"])
    assert (settled.time, settled.event, settled.unit) == ("time_months", "event", "months")


def test_a_time_before_zero_is_an_error_and_zero_is_kept_and_said():
    with pytest.raises(InputError, match="slide 's1' has the time -3, before 0"):
        read(Survival(), table(time_days=["5", "-3"], event=["1", "0"]))
    targets = read(Survival(), table(time_days=["0", "3"], event=["1", "0"]))
    assert targets.tolist() == [[0, 1], [3, 0]]
    assert "1 patient has the time 0: it counts" in Survival(time="time_days", unit="days").facts(targets)[1]


def test_days_given_as_months_are_noticed():
    with pytest.raises(InputError, match="slide 's0' has a time of 3000 months, more than 150 years"):
        read(Survival(time="t", unit="months"), table(t=["3000", "5"], event=["1", "0"]))
    targets = np.array([[120.0, 1], [60, 0]])
    with pytest.raises(InputError, match=r"the horizon of 60 months lies beyond the largest time \(120 days\)"):
        Survival(unit="days", horizons=(60.0,)).of_cohort(targets)


def test_notes_on_times_state_their_unit():
    targets = np.array([[120.0, 1], [150, 1], [160, 1], [170, 0]])
    task = Survival("rank", unit="days", horizons=(3.0, 6.0)).fit(targets)
    notes = {name: note_of(value) for name, value in task.score(targets, np.full((4, 1), 0.5)).items()}
    assert notes["auc_3"] == "no event up to time 91.3125 days"
    assert notes["auc_6"] == "nobody is followed beyond time 182.625 days"
    assert notes["auc_mean"] == "follow-up ends at time 170 days, before time 182.625 days"
    assert with_unit_of_time(undefined("at time 1.5e+06; or"), "days").note == "at time 1.5e+06 days; or"
    assert with_unit_of_time(undefined("beyond time 12"), "").note == "beyond time 12"


def test_an_empty_time_or_event_states_nothing():
    rows = table(time_days=["5", None, "7"], event=["1", "0", None])
    task = Survival().settled(list(rows))
    assert task.stated(task.targets(rows)).tolist() == [True, False, False]


@pytest.mark.parametrize("event", [0, 1])
def test_all_or_none_with_the_event_is_an_error(event):
    with pytest.raises(InputError, match=f"{'every' if event else 'no'} patient had the event"):
        Survival(unit="days").of_cohort(np.array([[5.0, event], [7.0, event]]))


def test_a_censorship_that_nobody_named_is_asked_for():
    """It is never taken for an event, nor guessed."""
    rows = table(time_months=["5", "7"], censorship=["0", "1"])
    assert Survival.recognises(list(rows))
    with pytest.raises(InputError, match="1 where a patient is censored; pass --censorship censorship, or --event"):
        read(Survival(), rows)
    assert read(Survival(censorship="censorship"), rows)[:, 1].tolist() == [1, 0]


def test_a_follow_up_without_a_median_is_said_in_words():
    """One of six is censored: the reverse Kaplan-Meier curve stays above one half."""
    task = Survival(time="time_days", unit="days")
    targets = np.array([[10.0, 1], [20, 1], [30, 0], [40, 1], [50, 1], [60, 1]])
    (line, *_) = task.fold_facts([targets])
    assert line.endswith("5 of 6 (12 pairs, unknown: few are censored).")
    assert "nan" not in task.facts(targets)[0]
