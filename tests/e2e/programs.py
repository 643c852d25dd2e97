"""What the tests have run in containers: each prints a number a time, each number one more than the last.

Their files are in the rootfs, below /srv. Only SQLite's is in /data, which the test brings to the new pod as a
persistent volume would: SQLite remembers the inode of its file, and takes a copy for another file (os_unix.c,
fileHasMoved).
"""

# Threads, open files, sqlite, a TCP server and its client over loopback, a shared mapping, and a child process: all
# must agree about a number before it is printed.
PYTHON = r"""
import mmap, multiprocessing, socket, sqlite3, threading, time
from multiprocessing.shared_memory import SharedMemory

def child(pipe, name):
    memory = SharedMemory(name)
    total = 0
    while True:
        total += pipe.recv()
        memory.buf[:8] = total.to_bytes(8, "little")
        pipe.send(total)

def serve(listener):
    connection, _ = listener.accept()
    stream = connection.makefile("rw")
    count = 0
    for line in stream:
        count += int(line)
        stream.write(f"{count}\n")
        stream.flush()

pipe, end = multiprocessing.Pipe()
memory = SharedMemory("grit", create=True, size=4096)
multiprocessing.Process(target=child, args=(end, memory.name), daemon=True).start()
listener = socket.create_server(("127.0.0.1", 8000))
threading.Thread(target=serve, args=(listener,), daemon=True).start()
client = socket.create_connection(("127.0.0.1", 8000)).makefile("rw")
database = sqlite3.connect("/data/database")
database.execute("create table numbers (number integer)")
journal = open("/srv/journal", "w+")
with open("/srv/mapped", "w+b") as stream:
    stream.truncate(4096)
    mapped = mmap.mmap(stream.fileno(), 4096)
turn = threading.Semaphore(0)
ticks = 0
def tick():
    global ticks
    while True:
        time.sleep(0.02)
        ticks += 1
        turn.release()
threading.Thread(target=tick, daemon=True).start()
number = 0
while True:
    turn.acquire()
    number += 1
    pipe.send(1)
    client.write("1\n")
    client.flush()
    database.execute("insert into numbers values (?)", (number,))
    database.commit()
    journal.write(f"{number}\n")
    journal.flush()
    mapped[:8] = (int.from_bytes(mapped[:8], "little") + 1).to_bytes(8, "little")
    journal.seek(0)
    answers = {
        "process": pipe.recv(),
        "shared memory": int.from_bytes(memory.buf[:8], "little"),
        "connection": int(client.readline()),
        "sqlite": database.execute("select count(*) from numbers").fetchone()[0],
        "file": len(journal.read().split()),
        "mapping": int.from_bytes(mapped[:8], "little"),
    }
    assert set(answers.values()) == {number}, (number, answers)
    print(number, flush=True)
"""

_CONNECT = r"""
import socket, time
def connect(port):
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).makefile("rwb")
        except ConnectionRefusedError:
            time.sleep(0.05)
"""

# One connection that is kept alive; nginx counts the requests, and the connections it has accepted, in shared memory.
_NGINX_CLIENT = (
    _CONNECT
    + r"""
stream = connect(8080)
while True:
    stream.write(b"GET /status HTTP/1.1\r\nHost: a\r\n\r\n")
    stream.flush()
    size = 0
    while (line := stream.readline().strip().lower()):
        if line.startswith(b"content-length:"):
            size = int(line.split()[1])
    accepts, _, requests = stream.read(size).split(b"\n")[2].split()
    assert accepts == b"1", accepts
    print(int(requests), flush=True)
    time.sleep(0.03)
"""
)

NGINX_CONFIG = """
user root; worker_processes 1; daemon off; pid /srv/nginx.pid; error_log /srv/error.log;
events {}
http {
  access_log off; keepalive_timeout 1h; keepalive_requests 1000000;
  client_body_temp_path /srv/t1; proxy_temp_path /srv/t2; fastcgi_temp_path /srv/t3;
  uwsgi_temp_path /srv/t4; scgi_temp_path /srv/t5;
  server { listen 127.0.0.1:8080; location /status { stub_status; } location / { return 200 "served\\n"; } }
}
"""

# One connection: INCR answers with the number.
_REDIS_CLIENT = (
    _CONNECT
    + r"""
stream = connect(6379)
while True:
    stream.write(b"INCR number\r\n")
    stream.flush()
    print(int(stream.readline()[1:]), flush=True)
    time.sleep(0.03)
"""
)


def shell(files: dict[str, str], command: str) -> str:
    """A shell script that writes the files below /data and then runs the command."""
    written = "".join(f"cat >/data/{name} <<'END_OF_FILE'\n{text}\nEND_OF_FILE\n" for name, text in files.items())
    return f"mkdir -p /srv\n{written}{command}"


COUNTER = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"
PYTHON_PROGRAM = shell({"program.py": PYTHON}, "exec python3 -u /data/program.py")
NGINX = shell(
    {"nginx.conf": NGINX_CONFIG, "client.py": _NGINX_CLIENT},
    "nginx -e /srv/error.log -c /data/nginx.conf & exec python3 -u /data/client.py",
)
REDIS = shell(
    {"client.py": _REDIS_CLIENT},
    "redis-server --bind 127.0.0.1 --dir /srv --save '' --appendonly yes >/srv/redis.log &"
    " exec python3 -u /data/client.py",
)
# PostgreSQL refuses to be root, and CRIU needs CAP_SYS_RESOURCE for a process of another user, which a test machine may
# lack (prlimit(2)). So it is told that it is somebody else. /data/uid.so comes from the test.
NOT_ROOT = "unsigned geteuid(void) { return 1000; }\nunsigned getuid(void) { return 1000; }\n"
# psql has one connection over TCP; each insert answers with its number.
POSTGRES = """
mkdir -p /srv
export LD_PRELOAD=/data/uid.so
mkdir /srv/db; busybox chown 1000:0 /srv/db
/pgbin/initdb -D /srv/db -A trust -U app -N >/srv/initdb.log 2>&1 || exec cat /srv/initdb.log
/pgbin/postgres -D /srv/db -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=10 \\
  -c shared_buffers=8MB >/srv/server.log 2>&1 &
until /pgbin/psql -XqtA -h 127.0.0.1 -U app postgres -c 'create table t (id serial, word text)' 2>/dev/null
do sleep 0.1; done
while :; do echo "insert into t (word) values (repeat('x', 500)) returning id;"; sleep 0.05; done |
  exec /pgbin/psql -XqtA -h 127.0.0.1 -U app postgres
"""
