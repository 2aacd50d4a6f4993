# What the sets of Podman, with and without root, share. Sourced after lib.sh by a set that has set
# manager (cgroupfs or systemd) and image. Functions that a check runs: check's script is their name.
# shellcheck shell=bash
# shellcheck disable=SC2154 # R and work come from lib.sh, manager and image from the set
i=$image
# p ARGUMENT...: Podman on the runtime under test.
eval "p() { podman --runtime \"\$R\" --cgroup-manager $manager \"\$@\"; }"
box() { p run --rm --network none "$@"; }
# sleeper NAME OPTION...: a container that only sleeps.
sleeper() {
	local name=$1
	shift
	p run -d --name "$name" --network none "$@" "$i" sleep 1000 >/dev/null
}
away() { p rm -f -t 0 "$@" >/dev/null; }
status_of() { p inspect --format '{{.State.Status}}' "$1"; }
pid_of() { p inspect --format '{{.State.Pid}}' "$1"; }
# ns CONTAINER KIND: which namespace of that kind it is in.
ns() { readlink "/proc/$(pid_of "$1")/ns/$2"; }

exec_plain() {
	sleeper e
	p exec e echo in | tr '\n' ' '
	p exec --user 1000 -w /run -e KEY=v e sh -c 'echo $(id -u) $(pwd) $KEY' | tr '\n' ' '
	echo given | p exec -i e cat | tr '\n' ' '
	p exec e sh -c 'exit 5'
	echo $?
	away e
}
# on_tty and a person who types: the size is the terminal's, and what is typed is done.
exec_terminal() {
	sleeper et
	on_tty 80 '# =stty size; exit 6\n' -- podman --runtime "$R" exec -it et sh >"$work/tty"
	echo $? "$(grep -x '33 77' "$work/tty")"
	away et
}
run_terminal() {
	on_tty 80 '# =stty size; exit 6\n' -- podman --runtime "$R" --cgroup-manager "$manager" run --rm -it --network none "$i" sh >"$work/tty"
	echo $? "$(grep -x '33 77' "$work/tty")"
}
detached() {
	p run -d --name d --network none "$i" sh -c 'trap "exit 3" TERM; echo up; while :; do sleep 0.1; done' >/dev/null
	until_true 30 sh -c '[ "$(podman logs d)" = up ]'
	p logs d | tr '\n' ' '
	p stop -t 20 d >/dev/null
	p wait d | tr '\n' ' '
	status_of d
	p rm d >/dev/null
}
killed() {
	sleeper k
	p kill k >/dev/null
	p wait k
	p rm -f k >/dev/null
}
# SIGUSR1 reaches the program, and only as that.
signalled() {
	p run -d --name ku --network none "$i" sh -c 'trap "echo usr1; exit 4" USR1; echo up; while :; do sleep 0.1; done' >/dev/null
	until_true 30 sh -c '[ "$(podman logs ku)" = up ]'
	p kill -s USR1 ku >/dev/null
	p wait ku | tr '\n' ' '
	p logs ku | tail -n 1
	away ku
}
# Podman's words for its columns, and the host's names of users.
top() {
	sleeper t
	p top t pid args | awk 'END { print $1, $2, $3 }'
	away t
}
# In a paused container nothing moves: the counter stands still.
paused() {
	mkdir -p "$work/z" && echo 0 >"$work/z/count"
	p run -d --name z --network none -v "$work/z:/z" "$i" \
		sh -c 'n=0; while :; do n=$((n + 1)); echo $n >/z/new; mv /z/new /z/count; usleep 50000; done' >/dev/null
	until_true 30 moved 0
	p pause z >/dev/null
	status_of z | tr '\n' ' '
	local first
	first=$(cat "$work/z/count")
	sleep 1
	moved "$first" || printf 'still '
	p unpause z >/dev/null
	until_true 30 moved "$first" && printf 'moves '
	status_of z
	away z
}
moved() { [ "$(cat "$work/z/count")" != "$1" ]; }
# Two processes, one with 32 MiB of its own: the engine's figures are the container's. (Podman leaves files
# out, and with them what is in /dev/shm.)
stats() {
	p run -d --name s --network none "$i" sh -c 'sleep 1000 & mkfifo /tmp/f
		exec awk "BEGIN { s = \"x\"; while (length(s) < 32000000) s = s s; print \"up\"; fflush(); getline < \"/tmp/f\" }"' >/dev/null
	until_true 60 sh -c '[ "$(podman logs s)" = up ]'
	p stats --no-stream --format '{{.MemUsage}} {{.PIDs}}' s |
		awk '{ print ($1 ~ /MB$/ && $1 + 0 >= 32 && $1 + 0 < 120) ? "memory" : $1, $NF }'
	away s
}
updated() {
	sleeper u --memory 64m
	p update --memory 96m --cpus 0.25 --pids-limit 44 u >/dev/null
	p exec u sh -c 'cd /sys/fs/cgroup; echo $(cat memory.max cpu.max pids.max)'
	away u
}
# health COMMAND WANTED: what the timer of systemd makes of it; nobody calls "healthcheck run".
health() {
	sleeper h --health-cmd "$1" --health-interval 2s --health-retries 2 --health-timeout 60s
	until_true 80 sh -c "[ \"\$(podman inspect --format '{{.State.Health.Status}}' h)\" = $2 ]"
	p inspect --format '{{.State.Health.Status}}' h
	away h
}
# A volume of the engine's: what one container writes the next one reads.
named_volume() {
	p volume create vol >/dev/null
	box -v vol:/v "$i" sh -c 'echo kept >/v/f'
	box -v vol:/v:ro "$i" sh -c 'echo $(cat /v/f) $(touch /v/g 2>/dev/null || echo refused)'
	p volume rm vol >/dev/null
	p volume ls -q
}
host_spaces() {
	box --ipc host --pid host "$i" sh -c 'readlink /proc/self/ns/ipc; readlink /proc/self/ns/pid' | {
		read -r a
		read -r b
		[ "$a" = "$(readlink /proc/self/ns/ipc)" ] && printf 'same '
		[ "$b" = "$(readlink /proc/self/ns/pid)" ] && echo same
	}
}
# The host's network is that of the host: the same interfaces.
host_network() {
	[ "$(p run --rm --network host "$i" ls /sys/class/net | sort)" = "$(ls /sys/class/net | sort)" ] && echo same
}
# The members of a pod meet in the namespaces of its infra container, and only in these.
pod() {
	p pod create --name pod --infra-image "$i" --infra-command 'sleep 1000' --network none --hostname podhost >/dev/null
	p run -d --pod pod --name a "$i" sh -c 'echo over the loopback | nc -l -p 77; exec sleep 1000' >/dev/null
	p run -d --pod pod --name b "$i" sleep 1000 >/dev/null
	local infra kind
	infra=$(p pod inspect --format '{{.InfraContainerID}}' pod)
	for kind in net ipc uts; do
		[ "$(ns a $kind)" = "$(ns "$infra" $kind)" ] && [ "$(ns b $kind)" = "$(ns "$infra" $kind)" ] &&
			[ "$(ns b $kind)" != "$(readlink /proc/self/ns/$kind)" ] && printf '%s ' $kind
	done
	for kind in pid mnt; do [ "$(ns a $kind)" = "$(ns b $kind)" ] || printf 'own %s ' $kind; done
	p exec b sh -c 'hostname; for n in 1 2 3 4 5 6 7 8 9; do nc 127.0.0.1 77 2>/dev/null && break; sleep 0.5; done' | tr '\n' ' '
	p pod stop -t 0 pod >/dev/null 2>&1
	p pod inspect --format '{{.State}}' pod | tr '\n' ' '
	p pod start pod >/dev/null
	p pod inspect --format '{{.State}}' pod
	p pod rm -f -t 0 pod >/dev/null
}
pod_of_pids() {
	p pod create --name pids --infra-image "$i" --infra-command 'sleep 1000' --network none --share ipc,net,uts,pid >/dev/null
	p run -d --pod pids --name c "$i" sleep 2000 >/dev/null
	p run --rm --pod pids "$i" sh -c 'ps | grep -c "sleep [12]000"'
	p pod rm -f -t 0 pids >/dev/null
}
# kube MANIFEST: two containers and one that prepares, with all that a manifest may ask for offline.
kube() {
	p kube play --network none "$1" >/dev/null
	until_true 60 sh -c 'podman logs kube-reader | grep -q .'
	p logs kube-reader | tr '\n' ' '
	p exec kube-writer sh -c 'cd /sys/fs/cgroup; echo $(cat memory.max cpu.max)
		awk "/^CapBnd:|^NoNewPrivs:/ { print \$2 }" /proc/self/status; touch /x 2>/dev/null || echo refused' | tr '\n' ' '
	until_true 80 sh -c "[ \"\$(podman inspect --format '{{.State.Health.Status}}' kube-writer)\" = healthy ]"
	p inspect --format '{{.State.Health.Status}}' kube-writer | tr '\n' ' '
	p kube down --force "$1" >/dev/null
	p ps -aq --filter name=kube | wc -l
}
# many N: all at once.
many() {
	local n
	for n in $(seq "$1"); do sleeper "n$n" & done
	wait
	p ps -q --filter name='^n[0-9]*$' | wc -l | tr '\n' ' '
	away $(seq -f 'n%.0f' "$1")
	p ps -aq --filter name='^n[0-9]*$' | wc -l
}
