# What a container whose data lies in the pool runs: the image's own entry point, again and again as
# long as somebody holds the server down on purpose. So a reset needs no new container.
# Arguments: the file that means "held", then the entry point and its arguments.
held="$1"
shift
rm -f "$held"
child=
stopping=
stop() {
  stopping=yes
  [ -z "$child" ] || kill -INT "$child"
}
trap stop INT TERM
while :; do
  "$@" &
  child=$!
  # A signal ends `wait` early: the child is asked for until it is gone. It is told again and again to
  # stop, because an entry point does not listen before it has become the server.
  while kill -0 "$child" 2>/dev/null; do
    if [ -n "$stopping" ]; then
      kill -INT "$child" 2>/dev/null
      sleep 0.1
    else
      wait "$child"
    fi
  done
  wait "$child"
  code=$?
  child=
  [ -z "$stopping" ] && [ -e "$held" ] || exit "$code"
  # Its number stands in the file; where it has died, nobody holds the server down.
  turn=0
  while [ -e "$held" ] && [ -z "$stopping" ] && [ "$turn" -lt 6000 ]; do
    holder=
    { read -r holder <"$held"; } 2>/dev/null
    [ -z "$holder" ] || [ -d "/proc/$holder" ] || break
    sleep 0.02
    turn=$((turn + 1))
  done
  rm -f "$held"
  [ -z "$stopping" ] || exit 0
done
