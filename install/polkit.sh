# The right to suspend the host: a polkit rule for the agent's user, where the agent's configuration wants it.

readonly POLKIT_RULE=$ROOT/etc/polkit-1/rules.d/50-moe2-agent.rules
# What polkit before 0.106 reads.
readonly POLKIT_PKLA=$ROOT/etc/polkit-1/localauthority/50-local.d/50-moe2-agent.pkla

wants_suspend() { grep -qsE '^[[:space:]]*allow_suspend[[:space:]]*=[[:space:]]*true\b' "$CONFIG_DIR/agent.toml"; }

# The rule that this host's polkit reads is there if the configuration wants it, and gone if not.
ensure_suspend_rule() {
  if ! wants_suspend; then
    remove "the right to suspend" "$POLKIT_RULE" "$POLKIT_PKLA"
    return
  fi
  if [[ -d ${POLKIT_RULE%/*} ]]; then
    put_rule "$POLKIT_RULE" systemd/polkit.rules
  elif [[ -d ${POLKIT_PKLA%/*} ]]; then
    put_rule "$POLKIT_PKLA" systemd/polkit.pkla
  else
    note_next "The agent may not suspend this host: it has no polkit. Install it (apt-get install polkitd), then run" \
      "this command again."
  fi
}

# put_rule TARGET SOURCE: polkit's folders keep their rights, and polkit itself notices the file.
put_rule() {
  if cmp -s "$2" "$1"; then return; fi
  step "Letting the agent suspend this host: ${1#"$ROOT"}" install -m 0644 "$2" "$1"
  note_done "the user moe2-agent may suspend this host"
}
