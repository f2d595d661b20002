/* SPDX-License-Identifier: Apache-2.0 */
/*
 * relay.h - the user-mode relay (`proxy_mode = "userspace"`): one listener a service port, and what they share.
 *
 * The switch sends a service's VIPs to the listener of that service; the relay connects to a backend from the node. One
 * thread, one epoll set, edge-triggered. The daemon is control plane only: the relay outlives it and is told what to
 * do through a unix socket (control.c).
 */
#ifndef SAMEWIRE_RELAY_H
#define SAMEWIRE_RELAY_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define ID_BYTES 64	     /* of a service's name, with its end */
#define MAX_BACKENDS 8192    /* of one service */
#define MAX_SESSIONS 65536   /* UDP clients, all services; half of the files at most */
#define MAX_AFFINITIES 65536 /* clients remembered, all services */
#define CONNECT_TRIES 3
#define CONNECT_TIMEOUT_MS 5000
#define SESSION_IDLE_MS 60000

enum source_kind {
	SOURCE_CONTROL_LISTENER,
	SOURCE_CONTROL,
	SOURCE_TCP_LISTENER,
	SOURCE_UDP_LISTENER,
	SOURCE_TCP_CLIENT,
	SOURCE_TCP_BACKEND,
	SOURCE_UDP_SESSION,
};

/* What an epoll event points to; the first member of its owner, or one of two (a connection's). */
struct source {
	enum source_kind kind;
	int fd;
	void *owner;
};

struct list {
	struct list *previous, *next;
};

struct address {
	socklen_t length;
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	};
};

struct backend {
	struct address address;
	uint64_t seed;	 /* of rendezvous hashing: the same on every node, in every run */
	bool draining;	 /* keeps its connections, gets no new ones */
	bool mentioned;	 /* wanted by the change being made */
	struct list users; /* connections or sessions, by their `of_backend` */
};

struct service {
	struct source source; /* the listener */
	struct list of_all;
	char id[ID_BYTES];
	bool udp;
	uint16_t port;	      /* of the listener, host order */
	uint32_t affinity_ms; /* 0 = none: every connection is spread */
	struct backend **backends;
	unsigned count, active; /* the active ones come first */
	uint64_t accepted, failed;
	unsigned open;
};

struct counters {
	uint64_t accepted, failed, refused, datagrams, datagrams_lost;
};

extern struct counters counters;
extern int epoll_fd;
extern unsigned max_files; /* descriptors that this process may have */

/* main.c */
uint64_t now_ms(void);
int watch(struct source *source, uint32_t events);
void free_later(void *memory); /* events of this round may still point to it */
uint64_t mix(uint64_t value);
void list_init(struct list *head);
void list_add(struct list *head, struct list *entry);
void list_remove(struct list *entry);

/* backends.c */
/* The one with that address; NULLs among them are passed over. */
struct backend *backend_find(struct backend **backends, unsigned count, const struct address *address);
struct backend *backend_choose(struct service *service, const struct address *client, const struct backend *not);
void affinity_forget(const struct service *service);

/* tcp.c */
int tcp_listen(struct service *service, const struct address *address);
void tcp_accept(struct service *service);
void tcp_event(struct source *source, uint32_t events);
void tcp_end(struct list *user); /* the backend of this connection is gone */
bool tcp_work(void);		 /* connections that had more than their turn; true: there are still some */
int tcp_timeout_ms(void);
void tcp_expire(void);

/* udp.c */
int udp_listen(struct service *service, const struct address *address);
void udp_receive(struct service *service);
void udp_answer(struct source *source);
void udp_end(struct list *user);
void udp_expire(void);

/* control.c */
int control_listen(const char *path);
void control_accept(struct source *source);
void control_event(struct source *source);

#define OWNER(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

#endif
