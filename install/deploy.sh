# Putting a release to use: configuration, units, start, and back again if a daemon does not come up.

# deploy ROLES…: RELEASE becomes the current one. What was running is running again if one of these does not come up.
deploy() {
  local role before former RESTART=no
  before=$(current_release)
  former=$(installed_roles)
  if [[ -n $before && $before != "$RELEASE" ]]; then
    RESTART=yes
    keep_units
  fi
  preflight "$@"
  if [[ $RESTART == yes && " $* " == *" coordinator "* ]]; then update_tables; fi
  if [[ $before == "$RELEASE" ]]; then
    kept "$RELEASE is in use"
  else
    step "Putting $RELEASE to use" point_current_to "$RELEASE"
  fi
  install_units "$@"
  if [[ " $* " == *" agent "* ]]; then ensure_suspend_rule; fi
  [[ $CHANGED == no ]] || RESTART=yes
  for role in "$@"; do
    if start_role "$role"; then continue; fi
    show_journal "$role"
    if [[ -z $before || $before == "$RELEASE" ]] || ! grep -qx "$role" <<<"$former"; then
      die "moe2-$role.service does not come up. Mend what its log says, then run the same command again."
    fi
    roll_back "$before" "$@"
    die "moe2-$role.service does not come up with the new release, so the former one is in use again: $before"
  done
  if [[ -n $before && $before != "$RELEASE" ]]; then
    note_done "the former release stays until the next upgrade: $before"
    is_dry || remove_old_releases "$RELEASE" "$before"
  fi
  if [[ $RESTART == yes || -z $before ]]; then note_done "running: ${*/#/moe2-}"; fi
}

# A release that refuses the configuration is not put to use.
preflight() {
  local role
  for role in "$@"; do
    if [[ ! -e $ROOT/etc/moe2/$role.toml ]]; then continue; fi
    attempt "Checking /etc/moe2/$role.toml" \
      "$RELEASE/bin/moe2-$role" check-config "${CHECK_OPTIONS[@]}" --config "$ROOT/etc/moe2/$role.toml" \
      || die "the configuration is refused; nothing was changed. Mend it, then run the same command again."
  done
}

# Tables that coordinators share are brought up to date by the release that needs them, before it starts; coordinators of
# the release before go on with them.
update_tables() {
  local config=$ROOT/etc/moe2/coordinator.toml
  if ! grep -Eqs '^url *= *["'"'"']postgres' "$config"; then return; fi
  attempt "Bringing the shared database's tables up to date" \
    "$RELEASE/bin/moe2-coordinator" database init --config "$config" \
    || die "the shared database's tables are not up to date; nothing else was changed. Run the same command again later."
}

# The units of the release in use, for the way back.
keep_units() {
  local role
  for role in $(installed_roles); do
    step "Keeping the unit of moe2-$role" \
      install -D -m 0644 "$(unit_file "$role")" "$HOME_DIR/former-units/moe2-$role.service"
  done
}

# roll_back RELEASE ROLES…: the former release and its units, running.
roll_back() {
  local role
  warn "Going back to $1."
  point_current_to "$1"
  shift
  for role in "$@"; do
    if [[ -e $HOME_DIR/former-units/moe2-$role.service ]]; then
      install -m 0644 "$HOME_DIR/former-units/moe2-$role.service" "$(unit_file "$role")"
    fi
  done
  systemctl daemon-reload
  for role in "$@"; do
    RESTART=yes start_role "$role" || warn "moe2-$role.service does not come up with the former release either."
  done
}
