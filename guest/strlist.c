/* Copies of a payload's strings: see strlist.h. */
#include "strlist.h"

#include <stdlib.h>
#include <string.h>

bool strings_init(struct strings *strings, const struct cbor *payload)
{
    size_t size = (size_t)(payload->end - payload->at) + 1;
    *strings = (struct strings){.block = malloc(size), .size = size};
    return strings->block != NULL;
}

char *strings_add(struct strings *strings, struct cbor_string text)
{
    if (strings->size - strings->used <= text.length)
        return NULL;
    char *copy = strings->block + strings->used;
    memcpy(copy, text.data, text.length);
    copy[text.length] = '\0';
    strings->used += text.length + 1;
    strings->has_nul = strings->has_nul || memchr(copy, '\0', text.length) != NULL;
    return copy;
}

void list_add(struct list *list, char *item, size_t limit)
{
    if (list->count >= limit || list->failed) {
        list->failed = true;
        return;
    }
    if (list->count + 1 >= list->capacity) {
        size_t capacity = list->capacity == 0 ? 16 : 2 * list->capacity;
        char **grown = realloc(list->items, capacity * sizeof *grown);
        if (grown == NULL) {
            list->failed = true;
            return;
        }
        list->items = grown;
        list->capacity = capacity;
    }
    list->items[list->count++] = item;
    list->items[list->count] = NULL;
}
