"""Which test attacks which claim of ``docs/security.md``.

python -m tests.sealing.claims
"""

from __future__ import annotations

from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- claims -->\n", "<!-- /claims -->"

CLAIMS: dict[str, tuple[str, ...]] = {
    "Nobody but the recipients reads a spore": (
        "../core/test_sealed_reef.py::test_nothing_that_was_said_is_readable_on_the_bus",
        "../examples/test_secure_deployment.py::test_nothing_comes_of_what_the_attacker_tries",
        "test_envelope.py::test_nothing_of_the_plaintext_is_in_the_envelope",
        "test_secure_spore.py::test_nobody_but_the_receiver_opens_it",
    ),
    "No bit of an envelope can be changed, no part cut off or exchanged": (
        "../core/test_sealed_reef.py::test_edited_forged_and_moved_envelopes_change_nothing",
        "test_envelope.py::test_every_single_bit_that_is_flipped_is_noticed",
        "test_envelope.py::test_every_truncation_and_extension_is_noticed",
        "test_envelope.py::test_no_splice_of_two_good_envelopes_is_one",
        "test_vectors.py::test_a_frozen_envelope_has_the_outcome_it_always_had",
    ),
    "The name of the sender is bound to its identity, and a root vouches for it": (
        "test_envelope.py::test_who_takes_the_signature_away_and_puts_its_own_there_is_not_believed",
        "test_directory.py::test_an_impostor_with_a_certificate_of_its_own_cannot_take_a_name",
        "test_adversary.py::test_a_broker_cannot_downgrade_redirect_or_forge",
    ),
    "An envelope cannot be moved to another topic or receiver": (
        "test_envelope.py::test_a_broker_that_moves_an_envelope_to_another_topic_is_noticed",
        "test_envelope.py::test_what_is_for_another_agent_is_refused_even_with_a_stanza_for_us",
        "test_directory.py::test_a_card_that_carries_anothers_prekey_gains_nothing",
    ),
    "Every recipient of an envelope reads the same": (
        "test_envelope.py::test_a_sender_cannot_seal_different_bodies_to_different_recipients_under_one_envelope",
        "test_envelope.py::test_a_stanza_that_carries_another_content_key_is_refused",
    ),
    "Certificates limit topics, types and names; what an issuer grants lies within its own": (
        "test_envelope.py::test_rights_bind_topics_and_types",
        "test_envelope.py::test_alerts_are_local_unless_a_certificate_names_them",
        "test_directory.py::test_an_issuer_cannot_grant_what_it_has_not",
    ),
    "Who steals a recipient's keys reads nothing older than the window": (
        "test_keys.py::test_who_steals_the_recipients_keys_reads_nothing_older_than_the_window",
        "test_keys.py::test_a_prekey_is_erased_when_the_last_card_that_lists_it_and_its_spores_are_over",
        "test_key_store.py::test_an_erased_prekey_is_gone_from_the_disk",
    ),
    "Who steals a sender's keys reads nothing": (
        "test_keys.py::test_who_steals_the_senders_keys_reads_nothing_at_all",
    ),
    "Rotation loses nothing that is under way": (
        "../core/test_sealed_reef.py::test_keys_that_rotate_while_spores_fly_lose_nothing",
        "test_keys.py::test_a_thousand_rotations_lose_nothing_that_is_under_way",
    ),
    "Nothing is handled twice: not after a replay, a restart, or at another replica": (
        "test_adversary.py::test_a_broker_that_replays_and_reorders_changes_nothing",
        "test_replay.py::test_nothing_is_handled_twice_across_a_hundred_restarts",
        "test_replay.py::TestModel",
        "test_shared_stores.py::test_replicas_handle_each_spore_once_also_after_a_restart",
        "../core/test_sealed_reef.py::test_what_was_committed_is_known_after_a_restart",
        "../core/test_sealed_reef.py::test_replicas_that_share_a_store_handle_a_spore_once",
    ),
    "A redelivery is no replay": (
        "../core/test_sealed_reef.py::test_what_was_not_acknowledged_is_handled_by_another_process",
        "test_shared_stores.py::test_what_a_killed_replica_had_begun_another_one_takes_when_its_lease_is_over",
        "test_replay.py::test_an_unacknowledged_duplicate_is_handled_after_its_handler_died",
        "test_adversary.py::test_a_crash_after_any_step_loses_nothing_and_commits_once",
        "test_adversary.py::test_a_resend_that_is_sealed_again_is_the_same_spore",
    ),
    "The memory is bounded, and what it had to forget is refused": (
        "test_replay.py::test_a_full_quota_makes_room_by_a_floor_below_which_nothing_is_accepted",
        "test_replay.py::test_entries_live_until_expiry_and_three_skews",
    ),
    "A lost or restored store, or a clock that jumps, stops everything": (
        "test_key_store.py::test_a_replay_memory_that_is_not_ours_stops_everything",
        "test_key_store.py::test_a_restored_backup_of_the_whole_folder_is_noticed_by_its_own_cards",
        "test_shared_stores.py::test_a_memory_that_was_set_back_is_noticed_by_who_is_at_work",
        "test_shared_stores.py::test_a_redis_that_throws_keys_away_is_refused",
        "test_replay.py::test_a_clock_that_jumps_stops_everything_until_somebody_looked",
    ),
    "An old card cannot be brought back; a revoked certificate stays revoked": (
        "test_directory.py::test_an_older_card_is_refused_after_a_newer_one_also_after_a_restart",
        "test_directory.py::test_a_revoked_certificate_silences_its_owner_at_once_and_for_ever",
        "test_directory.py::test_a_status_list_cannot_be_rolled_back_or_signed_by_anybody",
    ),
    "Receipts and replies count only from whom they are due": (
        "test_adversary.py::test_a_forged_receipt_settles_nothing",
        "test_adversary.py::test_a_stolen_reply_answers_nothing",
        "test_adversary.py::test_what_a_broker_drops_is_known_to_be_unknown",
    ),
    "Floods are bounded, and accuse nobody": (
        "test_adversary.py::test_a_flood_of_junk_fills_one_bucket_and_a_bounded_ring",
        "test_envelope.py::test_a_flood_of_junk_raises_no_alarm_that_names_an_agent",
        "test_envelope.py::test_an_envelope_of_1024_stanzas_costs_one_exchange",
    ),
    "No bytes bring an untyped error": (
        "test_envelope.py::test_no_bytes_whatever_bring_anything_but_a_typed_refusal",
        "test_directory.py::test_no_bytes_bring_anything_but_a_typed_refusal",
        "../fuzz/test_fuzz.py::test_no_mutation_is_accepted_and_none_brings_an_untyped_error",
    ),
    "Key files are their owner's alone, and whole": (
        "test_key_store.py::test_a_key_file_that_is_open_to_others_is_refused",
        "test_key_store.py::test_no_link_is_followed",
        "test_key_store.py::test_a_process_that_dies_while_writing_leaves_the_old_file_or_the_new_one",
    ),
    "A journal of a sealed Reef is encrypted, and what was settled cannot be read any more": (
        "../core/test_journal_box.py::test_a_sealed_reef_keeps_a_sealed_journal",
        "../core/test_journal_box.py::test_the_key_of_a_day_is_erased_with_the_last_row_that_needs_it",
        "../core/test_journal_box.py::test_a_row_does_not_pass_for_another",
    ),
    "No line of an audit log can be changed, removed, added or moved unnoticed": (
        "../core/test_audit_log.py::test_every_byte_that_is_changed_is_noticed",
        "../core/test_audit_log.py::test_lines_that_are_gone_doubled_moved_or_foreign_are_noticed",
        "../core/test_audit_log.py::test_a_chain_that_was_made_anew_lacks_the_signature",
        "../core/test_audit_log.py::test_a_log_that_was_cut_is_found_by_who_has_seen_more",
    ),
    "A server that keeps the keys of replicas learns none of them": (
        "test_shared_stores.py::test_a_server_sees_no_key_no_content_and_no_name_it_needs_not",
    ),
    "No secret is logged, shown, pickled or raised": (
        "test_keys.py::test_no_secret_shows_in_a_repr_a_format_or_a_log",
        "test_keys.py::test_no_secret_can_be_pickled",
        "test_keys.py::test_no_secret_is_in_an_exception_or_its_causes",
        "test_key_store.py::test_no_secret_lies_on_the_disk_in_plain",
        "test_shared_stores.py::test_a_password_that_breaks_its_url_is_not_repeated",
    ),
}


def table() -> str:
    """Return the table as the document has it."""
    lines = ["| Claim | Tests, in `tests/sealing/` |", "|---|---|"]
    for claim, tests in CLAIMS.items():
        lines.append(f"| {claim} | {'<br>'.join(f'`{test}`' for test in tests)} |")
    return "\n".join(lines) + "\n"


def written(text: str) -> str:
    """Return the document with the table in its place."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
