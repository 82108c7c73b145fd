"""Which test holds which fault: a row for each fault or input that may happen, with the tests by
their node ids.

`test_table.py` looks whether all of them exist. In a node id without parameters all of them are
meant.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A fault, what must happen, and who looks at it."""

    fault: str
    must: str
    tests: tuple[str, ...]


ROWS = {
    1: Row(
        "SIGKILL an actor at every failpoint of add",
        "the unfinished row is never seen, every acked one is stored, the actor is restarted as a "
        "new stream",
        (
            "tests/processes/test_failpoints.py::test_an_actor_killed_within_add_leaves_whole_rows",
            "tests/test_failpoints.py::test_the_process_dies_at_the_nth_pass_of_that_point",
            "tests/processes/test_items.py::test_items_of_actors_that_died_are_the_oracles",
        ),
    ),
    2: Row(
        "SIGKILL an actor right after add returned",
        "that row is stored",
        (
            "tests/processes/test_rows.py::test_a_row_is_safe_once_add_returned",
            "tests/processes/test_rows.py::test_rows_of_a_killed_actor_are_those_it_was_told_are_safe",
        ),
    ),
    3: Row(
        "SIGKILL a sampler while drawing, gathering, publishing, holding a lock",
        "slot reclaimed, lock free, sampler restarted, no ready batch lost, none half-filled "
        "delivered",
        (
            "tests/processes/test_failpoints.py::test_a_sampler_killed_within_a_batch_loses_nothing",
            "tests/faults/test_start_and_end.py::test_a_sampler_killed_with_a_lock_leaves_the_lock_free",
            "tests/processes/test_torn_reads.py::test_nobody_steals_the_lock_of_a_stopped_reader",
            "tests/test_slots.py::test_recovery_frees_what_the_dead_sampler_was_filling_and_nothing_else",
        ),
    ),
    4: Row(
        "SIGKILL the learner's process",
        "every child is gone within 2 s, nothing is left in a folder or in shared memory",
        (
            "tests/processes/test_signals.py::test_no_process_and_no_memory_outlives_a_killed_parent",
            "tests/processes/test_signals.py::test_no_child_outlives_a_parent_that_dies_within_a_write",
            "tests/processes/test_signals.py::test_no_child_outlives_a_parent_that_leaves_without_a_word",
            "tests/processes/test_signals.py::test_children_without_a_death_signal_do_not_outlive_a_killed_parent",
            "tests/processes/test_signals.py::test_a_thread_ends_a_child_where_the_kernel_does_not",
            "tests/processes/test_signals.py::test_a_fork_of_a_killed_parent_does_not_keep_children_alive",
            "tests/processes/test_deaths.py::test_one_that_may_not_be_killed_ends_all_the_same",
            "tests/faults/test_start_and_end.py::test_nothing_of_ours_is_left_in_any_folder",
            "tests/faults/test_start_and_end.py::test_memory_of_a_killed_program_is_mapped_by_nobody",
        ),
    ),
    5: Row(
        "SIGKILL the whole process group; or the parent in the first 200 ms of a child's start",
        "the same",
        (
            "tests/processes/test_signals.py::test_no_process_outlives_its_killed_group",
            "tests/processes/test_signals.py::test_no_child_outlives_a_parent_killed_while_it_starts_them",
            "tests/processes/test_signals.py::test_a_start_without_a_death_signal_does_not_outlive_a_killed_parent",
            "tests/faults/test_start_and_end.py::test_no_child_outlives_a_death_in_the_first_200_ms_of_its_start",
        ),
    ),
    6: Row(
        "SIGSTOP a sampler in mid-gather while the ring wraps, then SIGCONT",
        "the check rejects what changed; no torn row",
        (
            "tests/processes/test_torn_reads.py::test_a_sampler_stopped_in_mid_copy_delivers_nothing_stale",
            "tests/test_reader.py::test_a_reader_that_was_stopped_for_a_lap_goes_on",
        ),
    ),
    7: Row(
        "SIGSTOP a lock holder, then SIGCONT",
        "nobody steals the lock; a warning names the holder; then all goes on",
        (
            "tests/processes/test_torn_reads.py::test_nobody_steals_the_lock_of_a_stopped_reader",
            "tests/test_ring.py::test_a_block_that_a_reader_holds_is_left_for_another_lap",
        ),
    ),
    8: Row(
        "random SIGKILLs of actors and samplers under full load",
        "oracle exact, no descriptor, mapping, process, thread or memory left over",
        (
            "tests/faults/test_storm.py::test_a_short_storm_loses_nothing",
            "tests/processes/test_kill_storm.py::test_a_storm_of_kills_loses_no_row_and_tears_no_batch",
            "tests/processes/test_items.py::test_items_drawn_while_actors_write_and_die_are_right",
        ),
    ),
    9: Row(
        "/dev/shm of 1 MiB",
        "no difference",
        (
            "tests/faults/test_memory.py::test_a_tiny_dev_shm_makes_no_difference",
            "tests/test_segment.py::test_it_has_no_name_in_any_folder",
        ),
    ),
    10: Row(
        "capacity above the cgroup's limit or the free memory",
        "refused at construction: both numbers, bytes a field, the knob",
        (
            "tests/faults/test_memory.py::test_a_real_groups_limit_is_noticed_at_construction",
            "tests/test_resource_limits.py::test_more_than_is_available_is_refused_with_both_numbers_and_a_line_a_part",
            "tests/test_resource_limits.py::test_an_ancestor_of_our_v2_group_may_be_the_narrowest",
            "tests/test_resource_limits.py::test_v1_groups_count_with_their_ancestors",
            "tests/test_replay.py::test_more_memory_than_there_is_is_refused_at_construction",
        ),
    ),
    11: Row(
        "memfd_create, fallocate, mmap, eventfd, pidfd_open fail at the n-th call",
        "a typed error; descriptors back to the count before; no child left",
        (
            "tests/faults/test_refusals.py::test_a_refused_call_is_a_typed_error_and_leaves_nothing",
            "tests/test_replay.py::test_a_replay_that_cannot_be_opened_leaves_nothing",
            "tests/test_segment.py::test_every_refused_call_is_a_typed_error_and_leaves_nothing",
        ),
    ),
    12: Row(
        "RLIMIT_NOFILE too small for 50 actors",
        "an error that names the limit, before any child starts",
        (
            "tests/processes/test_descriptors.py"
            "::test_too_few_descriptors_for_many_actors_are_noticed_before_any_is_started",
            "tests/processes/test_descriptors.py::test_whatever_the_limit_it_is_a_typed_error_or_it_works",
        ),
    ),
    13: Row(
        "a child truncates the memory",
        "EPERM",
        (
            "tests/faults/test_memory.py::test_a_child_cannot_truncate_the_memory",
            "tests/test_segment.py::test_nobody_can_resize_it",
        ),
    ),
    14: Row(
        "wrong shape, dtype, byte order, object dtype, missing, extra or misspelt field, ragged "
        "columns, 0 rows",
        "SpecMismatch naming field, expected, got; nothing written; the actor goes on",
        (
            "tests/faults/test_values.py::test_what_does_not_fit_is_refused_in_the_actor_and_it_goes_on",
            "tests/faults/test_values.py::test_what_does_not_fit_is_refused_in_the_owners_process",
            "tests/test_replay.py::test_a_row_that_does_not_fit_changes_nothing",
            "tests/test_replay.py::test_columns_that_do_not_fit_change_nothing",
            "tests/test_spec.py::test_an_array_whose_dtype_could_lose_something_is_refused",
            "tests/test_spec.py::test_missing_extra_and_misspelt_fields_are_named",
            "tests/test_spec.py::test_whole_numbers_in_arrays_are_not_rounded",
            "tests/test_spec.py::test_a_tensor_is_judged_as_an_array_and_a_single_one_as_a_number",
            "tests/test_spec.py::test_a_field_that_add_could_never_be_given_is_refused",
            "tests/test_episodes.py::test_a_field_without_parts_is_no_field",
            "tests/test_arrays.py::test_a_tensor_that_has_no_array_is_refused_with_the_way_to_one",
            "tests/test_arrays.py::test_a_list_in_which_numpy_would_round_a_whole_number_is_refused",
        ),
    ),
    15: Row(
        "NaN, inf, denormals, non-contiguous arrays",
        "stored bit for bit",
        (
            "tests/faults/test_values.py::test_values_come_through_the_whole_pipeline_bit_for_bit",
            "tests/test_replay.py::test_values_are_stored_bit_for_bit",
            "tests/test_spec.py::test_floats_of_the_fields_dtype_are_stored_bit_for_bit",
        ),
    ),
    16: Row(
        "batch_size 0, -1, True, 2.5, 1e9; prefetch 0; capacity not a multiple of anything",
        "a ValueError that says what is allowed; capacity is rounded up to whole blocks and says "
        "so",
        (
            "tests/test_replay.py::test_a_wrong_option_of_batches_is_refused",
            "tests/test_replay.py::test_a_wrong_batch_size_is_refused",
            "tests/test_replay.py::test_a_wrong_capacity_is_refused",
            "tests/test_replay.py::test_the_capacity_is_rounded_up_to_whole_blocks",
            "tests/test_validation.py::test_anything_else_is_refused_with_what_is_allowed",
        ),
    ),
    17: Row(
        "sampling before min_size_to_sample; all actors dead; limiter closed both ways",
        "waits with a reason; timeout raises; no producer left raises Stalled; never-open limiters "
        "are refused",
        (
            "tests/faults/test_waiting_for_each_other.py"
            "::test_a_limiter_that_could_never_open_is_refused_at_construction",
            "tests/faults/test_waiting_for_each_other.py::test_a_learner_that_a_limiter_holds_is_told_and_can_give_up",
            "tests/faults/test_waiting_for_each_other.py::test_actors_that_a_limiter_holds_are_told_and_can_give_up",
            "tests/faults/test_waiting_for_each_other.py::test_the_owner_that_a_limiter_holds_can_be_cancelled",
            "tests/faults/test_waiting_for_each_other.py"
            "::test_a_learner_whose_limiter_no_actor_can_open_any_more_is_stalled",
            "tests/faults/test_waiting_for_each_other.py"
            "::test_a_queue_in_order_that_nobody_takes_from_holds_its_writers",
            "tests/faults/test_waiting_for_each_other.py"
            "::test_a_limiter_and_a_vector_that_wait_for_each_other_are_stalled",
            "tests/faults/test_waiting_for_each_other.py"
            "::test_room_for_less_than_a_step_is_no_standstill_while_an_actor_is_alive",
            "tests/faults/test_waiting_for_each_other.py"
            "::test_rows_that_do_not_fit_beside_those_that_a_queue_keeps_make_nobody_wait_for_ever",
            "tests/faults/test_waiting_for_each_other.py"
            "::test_a_queue_that_keeps_the_blocks_for_its_own_learner_makes_no_other_one_stalled",
            "tests/faults/test_waiting_for_each_other.py"
            "::test_a_full_ring_is_enough_for_the_first_batch_though_a_step_does_not_fit",
            "tests/faults/test_waiting_for_each_other.py::test_a_queue_that_waits_for_one_sampler_names_it",
            "tests/test_standstill.py",
            "tests/test_admission.py::test_final_observations_do_not_wait_behind_steps",
            "tests/faults/test_waiting_for_each_other.py"
            "::test_a_selector_of_rows_that_are_gone_makes_nobody_wait_without_a_word",
            "tests/faults/test_waiting_for_each_other.py"
            "::test_a_selector_that_draws_what_it_may_not_ends_its_sampler_with_its_words",
            "tests/test_reader.py::test_a_selector_of_rows_that_are_not_there_fills_nothing_and_is_asked_a_few_times",
            "tests/test_batch_plan.py::test_fifo_gives_each_item_with_the_step_that_completes_it",
            "tests/processes/test_waits.py::test_waiting_for_a_first_batch_ends_with_the_counts",
            "tests/processes/test_restart.py::test_a_running_learner_is_told_that_all_actors_have_failed",
            "tests/processes/test_restart.py::test_actors_that_all_returned_leave_a_learner_that_needs_more_stalled",
        ),
    ),
    18: Row(
        "priorities negative, NaN, inf, all zero, wrong length; indices stale, foreign, repeated",
        "ValueError and nothing changed; stale ones counted; the last of repeated ones wins; all "
        "zero is said",
        (
            "tests/test_prioritized.py::test_what_makes_no_sense_is_refused_and_changes_nothing",
            "tests/test_prioritized.py::test_rows_that_all_have_priority_0_are_refused_at_the_draw",
            "tests/test_prioritized.py::test_stale_updates_are_counted_and_never_reach_a_newcomer",
            "tests/test_priorities.py::test_an_update_of_an_overwritten_row_is_recognised",
            "tests/faults/test_priorities_given_wrong.py::test_each_is_refused_or_counted_and_nothing_else_changes",
            "tests/test_validation.py::test_priorities_are_not_rounded",
            "tests/test_validation.py::test_tensors_are_priorities",
            "tests/test_prioritized.py::test_a_row_that_makes_no_item_keeps_none_that_does_from_being_drawn",
            "tests/test_prioritized.py::test_of_rows_that_make_no_item_it_is_said_that_none_can_be_made",
            "tests/test_prioritized.py::test_priorities_given_before_the_first_selector_are_what_it_begins_with",
        ),
    ),
    19: Row(
        "user code raises, exits, returns at once, cannot be pickled, blocks its loop, prints 1 "
        "MiB, forks",
        "a typed error with the child's traceback and exit code; restarts counted; the others go "
        "on",
        (
            "tests/processes/test_misbehaviour.py::test_misbehaviour_is_a_typed_error_with_the_childs_words",
            "tests/processes/test_misbehaviour.py::test_others_are_untouched",
            "tests/processes/test_restart.py::test_restarts_are_limited_and_backed_off",
            "tests/processes/test_quiet_actors.py::test_without_a_limit_an_actor_is_restarted_for_ever",
            "tests/faults/test_misbehaving_samplers.py"
            "::test_each_is_a_typed_error_with_the_samplers_words_and_the_others_go_on",
        ),
    ),
    20: Row(
        "cancel every public await at every suspension point",
        "no row, slot, lock or child leaked; the next call works",
        (
            "tests/faults/test_cancelling.py::test_every_public_await_is_listed",
            "tests/faults/test_cancelling.py::test_writing_cancelled_anywhere_is_all_or_nothing",
            "tests/faults/test_cancelling.py::test_starting_children_cancelled_anywhere_leaves_none",
            "tests/faults/test_cancelling.py::test_closing_cancelled_anywhere_closes_all_the_same",
            "tests/faults/test_cancelling.py::test_waiting_cancelled_anywhere_changes_nothing",
            "tests/faults/test_cancelling.py::test_an_actor_cancelled_in_its_calls_hands_in_all_or_nothing",
            "tests/processes/test_closing.py::test_cancelled_while_starting_children",
            "tests/test_batches.py::test_taking_cancelled_at_any_tick_takes_no_batch",
            "tests/test_batches.py::test_opening_cancelled_at_any_tick_leaves_nothing",
            "tests/test_coordinator.py::test_attaching_cancelled_at_any_tick_leaves_nothing",
        ),
    ),
    21: Row(
        "Ctrl-C once, twice; SIGTERM",
        "one: orderly close; two: at once; never an orphan",
        (
            "tests/processes/test_signals.py::test_ctrl_c_once_ends_in_order",
            "tests/processes/test_signals.py::test_ctrl_c_while_children_start_ends_in_order",
            "tests/processes/test_signals.py::test_ctrl_c_twice_ends_at_once",
            "tests/processes/test_signals.py::test_sigterm_ends_in_order",
            "tests/processes/test_signals.py::test_sigterm_to_everybody_ends_in_order",
        ),
    ),
    22: Row(
        "checkpoint killed anywhere, disk full, read-only, damaged, cut short, of a newer version, "
        "other spec",
        "the previous checkpoint still loads; damage is detected and named; nothing is half loaded",
        ("tests/test_checkpoint.py", "tests/processes/test_checkpoints.py"),
    ),
    23: Row(
        "the learner keeps a batch past its turn",
        "documented: the view is gone unless copied; in debug mode it shows poison",
        (
            "tests/test_debug.py::test_a_view_that_is_kept_past_its_turn_shows_poison",
            "tests/test_batch.py::test_a_released_batch_cannot_be_read",
            "tests/test_batch.py::test_a_copy_lives_on_its_own",
            "tests/test_batches.py::test_batches_come_in_turn_and_the_last_one_is_given_back",
            "tests/processes/test_kill_storm.py::test_a_batch_that_is_held_survives_the_death_of_its_sampler",
        ),
    ),
    24: Row(
        "two replays, two batch streams on one replay, nested use",
        "independent",
        (
            "tests/processes/test_several.py::test_two_replays_are_independent",
            "tests/processes/test_several.py::test_streams_and_groups_on_one_replay_are_independent",
            "tests/processes/test_several.py::test_several_tasks_take_from_one_stream",
            "tests/processes/test_kill_storm.py::test_an_actor_may_have_a_replay_of_its_own",
        ),
    ),
    25: Row(
        "swizzle: SIGSTOP some one by one, SIGCONT in another order, kills in between",
        "progress with at least one live actor and sampler; oracle exact; descriptors and memory "
        "flat",
        (
            "tests/faults/test_swizzle.py::test_stopped_processes_hold_nobody_up",
            "tests/processes/test_kill_storm.py::test_stopped_processes_can_be_closed",
        ),
    ),
    26: Row(
        "SIGCHLD ignored; a foreign waitpid(-1); a child stuck before it reads its arguments, of "
        "any size",
        "death seen by the pidfd, restarted, closing ends; a start ends after start_timeout_s or "
        "Ctrl-C",
        (
            "tests/processes/test_deaths.py::test_deaths_are_seen_where_sigchld_is_ignored",
            "tests/processes/test_deaths.py::test_an_exit_code_that_was_stolen_is_unknown",
            "tests/processes/test_deaths.py::test_last_words_count_where_the_exit_code_is_unknown",
            "tests/processes/test_deaths.py::test_multiprocessing_does_not_wait_for_our_children",
            "tests/processes/test_deaths.py::test_a_number_that_a_stranger_has_got_is_not_touched",
            "tests/processes/test_deaths.py::test_a_kernel_that_cannot_wait_for_a_pidfd_tells_the_code_all_the_same",
            "tests/processes/test_deaths.py::test_a_debugger_that_is_told_first_does_not_make_the_loop_spin",
            "tests/processes/test_deaths.py::test_children_see_the_deaths_of_their_own_children",
            "tests/test_doctor.py::test_a_death_is_seen_where_sigchld_is_ignored",
            "tests/processes/test_starter.py::test_a_start_that_is_stuck_before_the_arguments_are_read_ends_in_time",
            "tests/processes/test_starter.py::test_a_start_that_is_stuck_can_be_cancelled",
            "tests/processes/test_starter.py::test_arguments_that_block_while_they_are_pickled_end_a_start_in_time",
            "tests/processes/test_starter.py::test_a_start_that_is_stuck_in_pickling_can_be_cancelled",
            "tests/processes/test_starter.py::test_arguments_of_any_size_reach_each_successor",
            "tests/processes/test_starter.py::test_arguments_that_do_not_pickle_leave_nothing",
            "tests/processes/test_signals.py::test_ctrl_c_ends_a_start_that_is_stuck",
        ),
    ),
    27: Row(
        "a fork of the owner, a learner, an actor or a sampler, by whatever makes forks; the child "
        "uses, drops, leaves, exits",
        "a typed error in the child for every use; nothing reaches its parent: rows, locks, flags, "
        "signals, saves, children, the event loop",
        (
            "tests/faults/test_forks.py::test_every_use_of_a_learners_objects_is_a_typed_error",
            "tests/faults/test_forks.py::test_every_use_of_an_actor_is_a_typed_error",
            "tests/faults/test_forks.py::test_forks_that_leave_an_actors_or_a_samplers_code_end_alone",
            "tests/faults/test_forks.py::test_forks_that_leave_a_learners_code_end_alone",
            "tests/faults/test_forks.py::test_a_fork_during_a_save_keeps_no_directory_locked",
            "tests/faults/test_forks.py::test_a_forked_child_may_open_what_is_its_own",
            "tests/faults/test_forks.py::test_pools_and_loaders_get_the_error_across",
            "tests/faults/test_forks.py::test_environments_in_forked_processes_do_not_disturb_their_actor",
            "tests/faults/test_forks.py::test_a_look_from_outside_is_answered_while_a_child_lives",
            "tests/faults/test_forks.py::test_what_a_child_drops_waits_for_no_thread_of_its_parents",
            "tests/test_forks.py",
            "tests/test_event_loops.py",
        ),
    ),
    28: Row(
        "replays, streams, groups dropped without close, in any thread, in the middle of a call, "
        "at interpreter exit; their event loop running, closed, or stopped for ever",
        "collected: children ended, descriptors, threads, mappings back; a warning names what was "
        "dropped",
        (
            "tests/faults/test_dropped.py::test_replays_that_are_dropped_again_and_again_leave_nothing",
            "tests/faults/test_dropped.py::test_what_is_dropped_in_a_circle_waits_for_the_collector_only",
            "tests/faults/test_dropped.py::test_the_finalizer_takes_no_lock",
            "tests/faults/test_dropped.py::test_a_dropped_stream_leaves_its_replay_to_others",
            "tests/faults/test_dropped.py::test_a_coroutine_that_is_destroyed_lets_go",
            "tests/faults/test_dropped.py::test_no_loop_is_needed",
            "tests/faults/test_dropped.py::test_a_loop_that_was_stopped_in_another_thread_keeps_nothing",
            "tests/test_waiter.py::test_a_dropped_loop_keeps_no_doorbell",
            "tests/faults/test_dropped.py::test_a_learner_that_waits_is_dropped_with_its_loop",
            "tests/faults/test_dropped.py::test_at_the_end_of_the_interpreter",
            "tests/faults/test_dropped.py",
        ),
    ),
    29: Row(
        "stdout closed, full, broken; an interpreter that takes long to end",
        "a child that has finished is finished: no restart, no warning, no wait",
        (
            "tests/processes/test_deaths.py::test_one_that_has_returned_is_done_before_its_interpreter_ends",
            "tests/processes/test_deaths.py::test_closing_lets_exit_hooks_run",
            "tests/processes/test_deaths.py::test_exit_hooks_have_their_time_from_when_an_actor_has_returned",
            "tests/processes/test_deaths.py::test_a_second_cancellation_kills_one_that_ends_late",
            "tests/processes/test_deaths.py::test_one_that_raised_is_restarted_though_its_interpreter_does_not_end",
            "tests/processes/test_deaths.py::test_words_that_cannot_be_written_do_not_fail_a_child",
            "tests/processes/test_signals.py::test_a_program_without_standard_streams_keeps_its_memory_to_itself",
        ),
    ),
    30: Row(
        "every hook of the user's raises every kind of exception: StopIteration, GeneratorExit, "
        "SystemExit, ours",
        "the caller gets it; nothing hangs, nothing is left, the next call works",
        (
            "tests/faults/test_hooks.py",
            "tests/test_completion.py::test_whatever_work_in_a_thread_raises_is_raised",
            "tests/test_completion.py::test_work_in_a_thread_ends_before_its_cancelled_caller_goes_on",
        ),
    ),
    31: Row(
        "checkpoint paths and manifests that are pipes, devices, holes, deep or huge; no "
        "descriptor, no thread",
        "a typed error in bounded time and memory; what a save can replace, it replaces",
        (
            "tests/faults/test_odd_files.py",
            "tests/test_checkpoint.py::test_a_pipe_in_place_of_a_file_is_damage",
            "tests/test_checkpoint.py::test_numbers_that_cannot_be_are_damage",
            "tests/test_checkpoint.py::test_a_lack_of_descriptors_is_no_damage",
        ),
    ),
    32: Row(
        "an actor that hands nothing in; one failed actor of several",
        "named in a warning and in waits; restarted or raised as the user says",
        (
            "tests/processes/test_quiet_actors.py::test_an_environment_that_hangs_is_named",
            "tests/processes/test_quiet_actors.py::test_a_first_reset_that_hangs_is_told_apart",
            "tests/processes/test_quiet_actors.py::test_a_quiet_actor_is_restarted",
            "tests/processes/test_quiet_actors.py::test_a_quiet_actor_that_hangs_each_time_fails_for_good",
            "tests/processes/test_quiet_actors.py::test_a_stopped_process_is_named_as_stopped",
            "tests/processes/test_quiet_actors.py::test_actors_that_are_held_are_not_quiet",
            "tests/processes/test_quiet_actors.py::test_one_failed_actor_is_raised_where_the_user_says_so",
            "tests/processes/test_quiet_actors.py::test_a_learner_that_waits_is_told_of_one_failed_actor",
            "tests/processes/test_quiet_actors.py::test_one_failed_actor_is_named_while_the_others_go_on",
            "tests/test_quiet.py",
        ),
    ),
    33: Row(
        "arrays that change while a call waits, or are reused for the next step",
        "what they held when the call began to run is stored, or it is refused",
        (
            "tests/faults/test_changing_arrays.py",
            "tests/test_actor.py::test_what_the_arrays_held_when_the_call_began_is_handed_in",
            "tests/test_actor.py::test_a_vectors_arrays_may_change_while_it_waits_for_room",
            "tests/test_episodes.py::test_an_environment_that_overwrites_its_observations_is_noticed",
            "tests/test_episodes.py::test_one_step_episodes_that_overwrite_their_observations_are_noticed",
            "tests/test_episodes.py::test_a_list_of_one_observation_many_times_is_refused",
            "tests/test_vector_environments.py::test_vectors_that_do_not_copy_are_refused_without_next_obs",
            "tests/test_vector_environments.py::test_observations_that_the_environment_overwrites_are_refused",
        ),
    ),
    34: Row(
        "hundreds of streams in a small ring",
        "at least 0.9 of the capacity can be sampled, or a warning names the knob",
        (
            "tests/test_block_sizes.py::test_many_streams_leave_nine_rows_in_ten",
            "tests/test_block_sizes.py::test_streams_that_come_and_go_leave_nine_rows_in_ten",
            "tests/test_block_sizes.py::test_items_reach_over_blocks_that_were_split",
            "tests/test_block_sizes.py::test_blocks_that_somebody_uses_are_not_split",
            "tests/processes/test_rows.py::test_blocks_are_split_before_samplers_begin_if_actors_are_many",
        ),
    ),
    35: Row(
        "load, then go on: Fifo, Epochs, limiters, schedules, own items without a repr",
        "everything goes on where it was",
        (
            "tests/processes/test_resumed_streams.py",
            "tests/test_identity.py",
            "tests/processes/test_checkpoints.py::test_a_limiter_goes_on_with_its_counts",
            "tests/test_checkpoint.py::test_draws_go_on_as_if_nothing_had_happened",
            "tests/test_checkpoint.py::test_seeds_go_on_as_if_nothing_had_happened",
            "tests/test_checkpoint.py::test_priorities_come_back",
        ),
    ),
}
