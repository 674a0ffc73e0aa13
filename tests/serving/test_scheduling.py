"""Turns on a device: one thread at a time, new questions first, the rest one after another."""

import threading
import time

import pytest

from sama.serving.scheduling import FIRST_TOKEN, LATER_STEP, MAX_IN_FRONT, DeviceSchedule


WAIT = 10  # seconds until a test gives up


def start(schedule, rank, steps, log, name):
    """A thread that computes `steps` steps; returns it when it waits for its turn."""
    waiting = schedule.num_waiting()

    def work():
        with schedule.turn(rank) as turn:
            for step in range(steps):
                log.append((name, step))
                turn.pass_on()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while schedule.num_waiting() == waiting:
        time.sleep(0.001)
    return thread


def run(schedule, *threads):
    """Lets the threads, which all wait, compute to their ends."""
    schedule.release()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()


def test_threads_of_one_rank_take_turns():
    schedule, log = DeviceSchedule(), []
    schedule.acquire(FIRST_TOKEN)
    run(schedule, *(start(schedule, LATER_STEP, 3, log, name) for name in "abc"))
    assert log == [(name, step) for step in range(3) for name in "abc"]


def test_a_new_question_waits_for_one_step_only():
    schedule, log = DeviceSchedule(), []
    schedule.acquire(FIRST_TOKEN)
    trackers = [start(schedule, LATER_STEP, 4, log, name) for name in "abcd"]
    newcomer = start(schedule, FIRST_TOKEN, 2, log, "new")
    run(schedule, *trackers, newcomer)
    assert log[:2] == [("new", 0), ("new", 1)]
    assert sorted(log[2:]) == sorted((name, step) for name in "abcd" for step in range(4))


def test_a_step_that_runs_is_finished_first():
    schedule, log = DeviceSchedule(), []
    with schedule.turn(LATER_STEP) as turn:
        newcomer = start(schedule, FIRST_TOKEN, 1, log, "new")
        assert log == []
        turn.pass_on()
        assert log == [("new", 0)]
    newcomer.join(WAIT)


def test_the_device_is_free_while_a_thread_waits_for_something_else():
    schedule, log = DeviceSchedule(), []
    with schedule.turn(LATER_STEP) as turn:
        other = start(schedule, LATER_STEP, 2, log, "other")
        with turn.released():
            other.join(WAIT)
        assert log == [("other", 0), ("other", 1)]
    assert not schedule._taken


def test_an_error_ends_the_turn():
    schedule = DeviceSchedule()
    with pytest.raises(ZeroDivisionError), schedule.turn():
        raise ZeroDivisionError
    with schedule.turn() as turn:  # would wait for ever
        turn.pass_on()


def test_those_in_front_do_not_hold_up_the_rest_for_ever():
    schedule, log = DeviceSchedule(), []
    schedule.acquire(FIRST_TOKEN)
    tracker = start(schedule, LATER_STEP, 3, log, "tracker")
    previews = [start(schedule, FIRST_TOKEN, MAX_IN_FRONT, log, name) for name in "ab"]
    run(schedule, tracker, *previews)
    assert log.index(("tracker", 0)) == MAX_IN_FRONT
    assert log.index(("tracker", 1)) == 2 * MAX_IN_FRONT + 1


def test_a_question_that_is_alone_in_front_reads_on():
    schedule, log = DeviceSchedule(), []
    schedule.acquire(FIRST_TOKEN)
    tracker = start(schedule, LATER_STEP, 2, log, "tracker")
    question = start(schedule, FIRST_TOKEN, MAX_IN_FRONT, log, "question")
    run(schedule, tracker, question)
    assert log[:MAX_IN_FRONT] == [("question", step) for step in range(MAX_IN_FRONT)]
