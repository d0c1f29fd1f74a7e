"""prepare and train are killed, stopped, started twice and given damaged folders.

A few runs each of tests/faults/prepare.py and tests/faults/train.py, which do many more when they
are run by hand. Runs that nobody disturbs are made in this process.
"""

import random
import signal
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("processes are found in /proc", allow_module_level=True)

from faults import prepare as faults
from faults import train as training

from dfdetect.integrity import find_damage


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Six clips, and the tree that an undisturbed run makes of them."""
    return faults.Place(tmp_path_factory.mktemp("faults"), n_clips=6, here=True)


@pytest.fixture
def rng():
    return random.Random(0)


def test_a_killed_run_is_resumed_to_the_same_tree_and_redoes_nothing(place):
    out = place.new()
    run = place.run(out, "--workers", "1")
    faults.until_a_video_is_finished(run, out)
    assert run.kill().left == []
    assert 0 < len(list((out / "manifest").glob("*.parquet"))) < 6
    faults.resumed(place, out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes_with_its_code_and_the_run_is_resumed(place, number):
    faults.stop_by(place, number)


def test_ctrl_c_in_the_first_moments_prints_no_traceback(place):
    run = place.run(out := place.new())
    while not out.exists():
        assert run.process.poll() is None
    run.signal(signal.SIGINT)
    faults.clean(run.wait(), 130)


def test_a_worker_that_dies_in_mid_file_costs_that_file(place, rng):
    for _ in range(3):  # it may be between two files
        try:
            faults.kill_a_worker(place, signal.SIGKILL, 2, rng)
            return
        except faults.Skipped:
            pass
    pytest.skip("the worker was between two files each time")


def test_of_two_runs_in_one_folder_one_is_refused(place):
    first = place.run(out := place.new())
    while not (out / "prepare.json").exists():
        assert first.process.poll() is None
    words = (f"another run (process {first.process.pid}) is writing here", str(out))
    first.signal(signal.SIGSTOP)  # so that it cannot have finished
    faults.refused(place.do(out), 4, *words)
    first.signal(signal.SIGCONT)
    faults.clean(first.wait(), 0)
    assert faults.tree(out) == place.whole


@pytest.mark.parametrize("number", range(5))
def test_an_output_that_cannot_be_written_is_refused_before_any_work(place, rng, number):
    try:
        faults.output_refused(place, number, rng)
    except faults.Skipped as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("number", range(3), ids=["frames", "format", "qualities"])
def test_what_a_run_with_other_settings_left_unfinished_is_not_in_the_tree(place, rng, number):
    faults.other_settings_before_a_video_is_finished(place, number, rng)


@pytest.mark.parametrize("number", [1, 3, 4], ids=["longer", "only its time", "no face now"])
def test_only_what_has_changed_is_done_again_and_nothing_is_left_of_it(place, rng, number):
    faults.changed_source(place, number, rng)


def test_what_is_gone_from_the_source_stays_and_what_is_new_is_added(place, rng):
    faults.source_removed(place, 0, rng)
    faults.source_added(place, 0, rng)


def test_another_version_of_a_library_is_refused_unless_accepted(place, rng):
    faults.other_version(place, 1, rng)


@pytest.mark.parametrize("number", range(7))
def test_a_folder_edited_by_hand_is_refused_and_not_changed(place, rng, number):
    faults.edited_by_hand(place, number, rng)


@pytest.mark.parametrize("damage", faults.DAMAGE.values(), ids=list(faults.DAMAGE))
def test_damage_of_every_kind_is_found_and_looking_changes_nothing(place, rng, damage):
    out = place.prepared()
    assert find_damage(out) == []
    damaged = damage(out, rng)
    before = faults.tree(out)
    problems = find_damage(out)
    for path in damaged:
        assert any(path == p.path or path.stem in str(p.path) for p in problems)
    assert faults.tree(out) == before


@pytest.mark.parametrize("kind", list(faults.DAMAGE)[::8])
def test_verify_finds_and_repair_mends_to_the_same_tree(place, rng, kind):
    faults.damage_and_mend(place, faults.DAMAGE[kind], rng)


@pytest.mark.parametrize("number", [0, 2, 11, 12], ids=["1", "4", "copy", "elsewhere"])
def test_neither_workers_nor_surroundings_are_in_the_bytes(place, rng, number):
    faults.elsewhere(place, number, rng)


def test_the_order_of_a_table_is_not_in_the_bytes(place, rng):
    faults.shuffled(place, 0, rng)


@pytest.mark.parametrize("number", range(5), ids=["stem", "case", "NFC", "hard link", "slug"])
def test_names_that_look_alike_are_kept_apart(place, rng, number):
    faults.twins(place, number, rng)


def test_where_nobody_reads_the_result_the_work_is_done(place, rng):
    faults.nobody_listens(place, 0, rng)


def test_a_disk_that_takes_no_more_is_one_error_and_the_run_is_resumed(place, rng):
    faults.file_size_limit(place, 1, rng)


# --- train -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Prepared data, and what runs that nobody disturbs end with."""
    return training.Place(tmp_path_factory.mktemp("training"))


def test_a_killed_training_is_resumed_to_the_same_bits(trained):
    out = trained.new()
    run = trained.begin(out)
    training.until_line(run, out, 14)  # after the second validation
    assert run.kill().left == []
    assert not (out / "resume/state-00000036.pt").exists()
    training.resumed(trained, out)


def test_a_signal_to_training_saves_the_state_and_says_how_to_go_on(trained):
    training.stop_by(trained, signal.SIGTERM, line=9)


def test_a_validation_that_was_cut_short_is_made_up_for(trained, rng):
    training.stopped_while_validating(trained, 0, rng)


@pytest.mark.parametrize("part", ["position", "average"])  # of the others: test_train
def test_each_part_of_a_state_that_is_left_out_would_show(trained, rng, part):
    training.without_a_part(trained, training.PARTS.index(part), rng)


@pytest.mark.parametrize("damage", ["a part missing", "a pickle that runs code", "NaN"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_state_is_named_and_passed_over_and_two_are_refused(trained, rng, damage):
    training.damaged_state(trained, [*training.DAMAGES].index(damage), rng)


@pytest.mark.parametrize("number", range(7))
def test_training_on_something_else_than_before_is_refused_with_both_values(trained, rng, number):
    training.other_than_before(trained, number, rng)


@pytest.mark.parametrize("fault", training.DATA_FAULTS)
def test_faults_of_the_data_are_named_before_a_run_is_begun(trained, rng, fault):
    training.data_fault(trained, [*training.DATA_FAULTS].index(fault), rng)


@pytest.mark.parametrize("number", [1, 2, 3], ids=["weights", "loss", "gradient"])
def test_training_that_diverges_names_the_step_and_leaves_finite_files(trained, rng, number):
    training.diverging(trained, number, rng)


def test_a_run_whose_folder_is_moved_away_says_so_and_can_go_on_when_it_is_back(trained, rng):
    training.folder_removed(trained, 0, rng)
