"""prepare is killed, stopped, started twice and given damaged folders.

A few runs each of tests/faults/prepare.py, which does many more when it is run by hand. Runs that
nobody disturbs are made in this process.
"""

import random
import signal
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("processes are found in /proc", allow_module_level=True)

from faults import prepare as faults

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
